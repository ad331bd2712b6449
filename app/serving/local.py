"""A version that is open in this process: the photos under way, and its end after the last of them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.photos.encode import as_jpeg
from app.serving.application import Question
from app.serving.predictor import Prediction, Predictor
from app.settings import Settings


class LocalEndpoint:
    """A version that is open in this process."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.card = predictor.card
        self.settings = settings
        self._predictor = predictor
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def predict(self, data: bytes, seconds: float) -> Prediction:
        """Answer a photo within `seconds`. Raises RequestError."""
        with self._slot(seconds) as deadline:
            return await self._predictor.predict(data, deadline)

    async def ask(self, question: Question, data: bytes, seconds: float, *arguments: str) -> Any:
        """Answer another question about a photo within `seconds`. Raises RequestError."""
        with self._slot(seconds) as deadline:
            if question == "explain":
                return await self._predictor.explain(data, deadline, *arguments)
            if question == "picture":
                return await self._predictor.apply(as_jpeg, data, deadline)
            output = await self._predictor.output(data, deadline)
            familiarity = self._predictor.familiarity
            return familiarity.nearest(output) if familiarity else ()

    @contextmanager
    def _slot(self, seconds: float) -> Iterator[float]:
        end = time.monotonic() + seconds
        self._under_way += 1
        self._idle.clear()
        try:
            with self._predictor.slot() as deadline:
                yield min(deadline, end)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def close(self) -> None:
        """Finish the photos under way, and close the model."""
        await asyncio.sleep(0)  # a computation that was begun in this turn of the event loop starts first
        await self._idle.wait()
        await self._predictor.close()

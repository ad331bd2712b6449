"""A model ready to answer: `await predictor.predict(bytes)`.

The server and the command line await the same method. Knows nothing of HTTP, nor how it was opened.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.batcher import Batcher
from app.engine import Answer
from app.errors import BadOutput, NotExplained, Unavailable
from app.explain import Explainer, Explanation
from app.metrics import Metrics
from app.preprocess import Preprocess, decode
from app.proof import Prepare, ProofResult, Run
from app.settings import Settings

MODELS: Final = Path(__file__).parent / "models"
MAX_INSIDE: Final = 32  # requests between upload and answer: more would wait longer than people do

Float32 = npt.NDArray[np.float32]
Report = Callable[[str, int | None], None]  # the phase of opening, and its percent if known

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """A class and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer to one photo. `predictions` are all classes, the likeliest first; `result` is its label.

    With `multi_label`, `result` is every label from the threshold on, joined by ";" as fastai prints them.
    `familiarity` is how much the photo is like the one of the proof that it is most like, from -1 to 1: the
    cosine of their features; None without a proof.
    """

    result: str
    confidence: float
    familiarity: float | None
    unsure: bool
    predictions: tuple[Score, ...]


@dataclass(frozen=True)
class ModelCard:
    """What is being served."""

    architecture: str
    classes: tuple[str, ...]
    fastai: int
    container: str
    engine: str
    preprocess: Preprocess
    exif: str
    proof: ProofResult | None
    sha256: str
    bytes: int
    versions: dict[str, str]


class Predictor:
    """A model ready to answer. Made by `open_predictor`; to be closed."""

    def __init__(
        self,
        card: ModelCard,
        settings: Settings,
        prepare: Prepare,
        run: Run,
        metrics: Metrics,
        known: Float32 | None,
        explainer: Explainer | None,
    ) -> None:
        self.card = card
        self._settings = settings
        self._prepare = prepare
        self._batcher = Batcher(run)
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._metrics = metrics
        self._known = known  # (photos, features) of the proof, each of length 1
        self._explainer = explainer
        self._inside = 0

    async def predict(self, data: bytes) -> Prediction:
        """The answer to the bytes of one photo.

        Raises RequestError: BadRequest, UnsupportedMedia or BadImage for what is no usable picture, BadOutput
        when the network's answer is no number. Cancelled while it waits, it is not computed.
        """
        loop = asyncio.get_running_loop()
        with self._metrics.seconds.labels("decode").time():
            item = await loop.run_in_executor(self._decoders, self._decode, data)
        with self._metrics.seconds.labels("engine").time():
            answer = await self._batcher.submit(item)
        return self._prediction(answer)

    async def explain(self, data: bytes, label: str = "") -> Explanation:
        """Where on the photo is what speaks for the class `label`, or for the likeliest one.

        Raises what `predict` raises, BadRequest for an unknown class, NotExplained.
        """
        if self._explainer is None:
            raise NotExplained(
                'There are no heat maps with engine = "fastai"; engine = "auto" has them. '
                "POST /analyze answers as usual."
            )
        explainer = self._explainer
        return await asyncio.get_running_loop().run_in_executor(
            self._decoders, lambda: explainer(decode(data, self._settings.exif), label)
        )

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place among those that are under way, from before an upload is read. Raises Unavailable."""
        if self._inside >= MAX_INSIDE:
            raise Unavailable(f"{MAX_INSIDE} photos are under way already; try again shortly.", retry_after=5)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _decode(self, data: bytes) -> Any:
        return self._prepare(decode(data, self._settings.exif))

    def _prediction(self, answer: Answer) -> Prediction:
        """The network's answer in words."""
        probabilities, settings = answer.probabilities, self._settings
        if not np.isfinite(probabilities).all():
            raise BadOutput("The network gave no number for this picture; another picture may do.")
        order = np.argsort(-probabilities, kind="stable")
        scores = tuple(Score(self.card.classes[index], float(probabilities[index])) for index in order)
        confidence = scores[0].score
        result = scores[0].label
        if settings.multi_label:
            result = ";".join(s.label for s in scores if s.score >= settings.threshold)
        familiarity = None
        if self._known is not None:
            familiarity = float((self._known @ unit(answer.features)).max())
        unfamiliar = familiarity is not None and familiarity < settings.unfamiliar_below
        unsure = confidence < settings.unsure_below or unfamiliar
        return Prediction(result, confidence, familiarity, unsure, scores)

    async def close(self) -> None:
        """Finish what is under way and end the threads."""
        await self._batcher.close()
        self._decoders.shutdown()


def unit(vectors: Float32) -> Float32:
    """The same directions with length 1; what has no direction, all zeros, stays so and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]

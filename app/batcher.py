"""Requests that wait travel together: one engine, one thread, and no timer.

When the engine is free it takes all that waits, up to a bound; a request alone goes at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

MAX_BATCH: Final = 8  # above it, ONNX Runtime on a CPU gains nothing and everybody waits for the slowest


class Batcher:
    """Runs `run` (N prepared photos -> (N, classes)) for many callers, on a thread of its own."""

    def __init__(self, run: Callable[[Sequence[Any]], Float32]) -> None:
        self._run = run
        self._waiting: deque[tuple[Any, asyncio.Future[Float32]]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Any) -> Float32:
        """The (classes,) probabilities of one prepared photo.

        A caller that is cancelled while waiting is dropped before it is computed.
        """
        future: asyncio.Future[Float32] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Empty the queue, batch by batch."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            items, futures = zip(*batch, strict=True)
            try:
                rows = await loop.run_in_executor(self._executor, self._run, items)
            except Exception as error:  # whatever the engine raises belongs to the callers, not to this loop
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future, row in zip(futures, rows, strict=True):
                    if not future.done():
                        future.set_result(row)

    def _take(self) -> list[tuple[Any, asyncio.Future[Float32]]]:
        batch: list[tuple[Any, asyncio.Future[Float32]]] = []
        while self._waiting and len(batch) < MAX_BATCH:
            item, future = self._waiting.popleft()
            if not future.done():  # the client has gone
                batch.append((item, future))
        return batch

    async def close(self) -> None:
        """Finish what waits, then end the thread."""
        if self._worker is not None:
            await self._worker
        self._executor.shutdown()

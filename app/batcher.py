"""Requests that wait travel together: one engine, one thread, and no timer.

When the engine is free it takes all that waits, up to a bound; a request alone goes at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

Result = TypeVar("Result")

MAX_BATCH: Final = 8  # above it, ONNX Runtime on a CPU gains nothing and everybody waits for the slowest


class Batcher(Generic[Result]):
    """Runs `run` (N prepared photos -> N answers) for many callers, on a thread of its own."""

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Result]]) -> None:
        self._run = run
        self._waiting: deque[tuple[Any, asyncio.Future[Result]]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Any) -> Result:
        """The answer to one prepared photo.

        A caller that is cancelled while waiting is dropped before it is computed.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
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
                answers = await loop.run_in_executor(self._executor, self._run, items)
            except Exception as error:  # whatever the engine raises belongs to the callers, not to this loop
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future, answer in zip(futures, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)

    def _take(self) -> list[tuple[Any, asyncio.Future[Result]]]:
        batch: list[tuple[Any, asyncio.Future[Result]]] = []
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

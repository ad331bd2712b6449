"""Requests that wait travel together: one engine, one thread, and no timer.

When the engine is free it takes all that waits, up to a bound; a request alone goes at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, NamedTuple, TypeVar

from app.errors import QueueTimeout

Result = TypeVar("Result")

# ONNX Runtime on a CPU takes as long for a photo in a batch of eight as for one alone (docs/performance.md).
# A few together spare its threads some of their meetings; many would make the first wait for the last, and
# cost memory: 12 MB a photo with ResNet34.
MAX_BATCH: Final = 4


class Waiting(NamedTuple, Generic[Result]):
    """A prepared photo, when its answer is of no use any more (time.monotonic), and where the answer goes."""

    item: Any
    deadline: float
    answer: "asyncio.Future[Result]"
    since: float


class Batcher(Generic[Result]):
    """Runs `run` (N prepared photos -> N answers) for many callers, on a thread of its own."""

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Result]],
        on_batch: Callable[[int], None] = lambda size: None,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_batch` hears the size of each batch, `on_wait` how long each item of it has waited."""
        self._run = run
        self._on_batch = on_batch
        self._on_wait = on_wait
        self._waiting: deque[Waiting[Result]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Any, deadline: float) -> Result:
        """The answer to one prepared photo.

        A caller that is cancelled while waiting is dropped before it is computed, and so is one whose
        `deadline` (in the time of time.monotonic) has passed: it raises Unavailable.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(item, deadline, future, time.monotonic()))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Empty the queue, batch by batch."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self._on_batch(len(batch))
            try:
                answers = await loop.run_in_executor(self._executor, self._run, [each.item for each in batch])
            except Exception as error:  # whatever the engine raises belongs to the callers, not to this loop
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
            else:
                for each, answer in zip(batch, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(answer)

    def _take(self) -> list[Waiting[Result]]:
        batch: list[Waiting[Result]] = []
        while self._waiting and len(batch) < MAX_BATCH:
            each = self._waiting.popleft()
            if each.answer.done():  # the client has gone
                continue
            now = time.monotonic()
            if now > each.deadline:
                each.answer.set_exception(QueueTimeout())
            else:
                self._on_wait(now - each.since)
                batch.append(each)
        return batch

    async def close(self) -> None:
        """Finish what waits, then end the thread."""
        if self._worker is not None:
            await self._worker
        self._executor.shutdown()

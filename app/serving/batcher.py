"""The queue of prepared photos: computed by as many calls at once as the engine takes, and no timer.

A photo alone goes at once. An engine that takes one call at a time gets the photos that wait as a batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, NamedTuple, TypeVar

from app.errors import QueueTimeout

Result = TypeVar("Result")

# For an engine that takes one call at a time. A larger batch would make its first photo wait for the last,
# and takes memory: 12 MB a photo with ResNet34.
MAX_BATCH: Final = 4


class Waiting(NamedTuple, Generic[Result]):
    """A prepared photo, its deadline and its arrival (by time.monotonic), and the future of its answer."""

    item: Any
    deadline: float
    answer: "asyncio.Future[Result]"
    since: float


class Batcher(Generic[Result]):
    """Runs `run` (N prepared photos -> N answers) for many callers, on threads of its own."""

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Result]],
        on_batch: Callable[[int], None] = lambda size: None,
        on_wait: Callable[[float], None] = lambda seconds: None,
        callers: int = 1,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Call `run` on up to `callers` threads at once: with one photo each, or with batches on one thread.

        They are `threads`, which batchers may share and the caller ends, or else threads of its own.
        `on_batch` receives the size of each batch, `on_wait` the seconds that each photo has waited.
        """
        self._run = run
        self._on_batch = on_batch
        self._on_wait = on_wait
        self._callers = callers
        self._largest = MAX_BATCH if callers == 1 else 1
        self._waiting: deque[Waiting[Result]] = deque()
        self._own = None if threads else ThreadPoolExecutor(callers, thread_name_prefix="engine")
        self._threads = threads or self._own
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, item: Any, deadline: float) -> Result:
        """Return the answer to one prepared photo.

        A photo that is cancelled in the queue is not computed. One that is still there at its `deadline` (by
        time.monotonic) is not either: QueueTimeout is raised.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(item, deadline, future, time.monotonic()))
        if len(self._workers) < self._callers:
            self._workers.add(asyncio.create_task(self._work()))
        return await future

    async def _work(self) -> None:
        """Compute until the queue is empty."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self._on_batch(len(batch))
            try:
                answers = await loop.run_in_executor(self._threads, self._run, [each.item for each in batch])
            except Exception as error:  # an engine's error belongs to its callers, not to this loop
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
            else:
                for each, answer in zip(batch, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(answer)
        # at once, rather than in a callback: the next photo may arrive before that runs
        self._workers.discard(asyncio.current_task())

    def _take(self) -> list[Waiting[Result]]:
        """Take the next photos off the queue, without the cancelled and the late ones."""
        batch: list[Waiting[Result]] = []
        while self._waiting and len(batch) < self._largest:
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
        """Finish the photos in the queue, then end its own threads."""
        while self._workers:
            await asyncio.wait(self._workers)
        if self._own:
            self._own.shutdown()

"""The queue: photos that arrive while the engine is busy are computed next, together or side by side."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from app.errors import Unavailable
from app.serving.batcher import MAX_BATCH, Batcher
from tests.conftest import SECONDS

NEVER = math.inf


class Gate:
    """An engine that notes its batches and answers when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def run(self, items: Sequence[Any]) -> Any:
        self.batches.append(list(items))
        self.entered.release()
        assert self.open.wait(SECONDS)
        if "poison" in items:
            raise ValueError("poison")
        return np.array([[item, item] for item in items], np.float32)

    async def busy(self) -> None:
        """Return once a batch has arrived."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=SECONDS)


def test_each_caller_gets_its_own_row_and_those_that_wait_travel_together() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run)
        first = asyncio.create_task(batcher.submit(0, NEVER))
        await gate.busy()
        others = [asyncio.create_task(batcher.submit(i, NEVER)) for i in range(1, MAX_BATCH + 3)]
        await asyncio.sleep(0)  # let them enter; no time passes
        gate.open.set()
        rows = await asyncio.gather(first, *others)
        assert [row[0] for row in rows] == list(range(MAX_BATCH + 3))
        in_turn = list(range(1, MAX_BATCH + 3))
        assert gate.batches == [[0], in_turn[:MAX_BATCH], in_turn[MAX_BATCH:]]
        await batcher.close()

    asyncio.run(scenario())


def test_an_engine_that_takes_several_calls_gets_one_photo_in_each() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run, callers=2)
        photos = [asyncio.create_task(batcher.submit(i, NEVER)) for i in range(5)]
        await gate.busy()
        await gate.busy()  # the second call has begun while the first one waits
        assert gate.batches == [[0], [1]]  # and no third one
        gate.open.set()
        assert [row[0] for row in await asyncio.gather(*photos)] == list(range(5))
        assert sorted(gate.batches) == [[i] for i in range(5)]
        await batcher.close()

    asyncio.run(scenario())


def test_closing_waits_for_every_call() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run, callers=3)
        photos = [asyncio.create_task(batcher.submit(i, NEVER)) for i in range(4)]
        await gate.busy()
        closing = asyncio.create_task(batcher.close())
        gate.open.set()
        await closing
        assert [photo.done() for photo in photos] == [True] * 4

    asyncio.run(scenario())


@pytest.mark.fault("L02")
def test_a_caller_that_has_gone_is_not_computed() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run)
        first = asyncio.create_task(batcher.submit(0, NEVER))
        await gate.busy()
        gone, stays = (
            asyncio.create_task(batcher.submit(1, NEVER)),
            asyncio.create_task(batcher.submit(2, NEVER)),
        )
        await asyncio.sleep(0)
        gone.cancel()
        gate.open.set()
        assert (await stays)[0] == 2
        assert gate.batches == [[0], [2]]
        await first
        await batcher.close()

    asyncio.run(scenario())


@pytest.mark.fault("L02")
def test_a_caller_that_goes_while_it_is_computed_takes_nobody_along() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run)
        first = asyncio.create_task(batcher.submit(0, NEVER))
        await gate.busy()
        first.cancel()
        stays = asyncio.create_task(batcher.submit(1, NEVER))
        await asyncio.sleep(0)
        gate.open.set()
        async with asyncio.timeout(SECONDS):
            assert (await stays)[0] == 1
        await batcher.close()

    asyncio.run(scenario())


@pytest.mark.fault("L03")
def test_a_photo_past_its_deadline_is_refused_and_not_computed() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run)
        first = asyncio.create_task(batcher.submit(0, NEVER))
        await gate.busy()
        late = asyncio.create_task(batcher.submit(1, time.monotonic()))
        stays = asyncio.create_task(batcher.submit(2, NEVER))
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(Unavailable) as caught:
            await late
        assert (caught.value.code, caught.value.retry_after) == ("queue-timeout", 2)
        assert (await stays)[0] == 2
        assert gate.batches == [[0], [2]]
        await first
        await batcher.close()

    asyncio.run(scenario())


def test_the_sizes_of_the_batches_are_told() -> None:
    async def scenario() -> None:
        gate, sizes = Gate(), list[int]()
        gate.open.set()
        batcher = Batcher(gate.run, sizes.append)
        await asyncio.gather(*(batcher.submit(i, NEVER) for i in range(3)))
        assert sizes == [len(batch) for batch in gate.batches]
        assert sum(sizes) == 3
        await batcher.close()

    asyncio.run(scenario())


def test_a_failing_batch_fails_its_callers_and_the_next_one_works() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.open.set()
        batcher = Batcher(gate.run)
        with pytest.raises(ValueError, match="poison"):
            await batcher.submit("poison", NEVER)
        assert (await batcher.submit(3, NEVER))[0] == 3
        await batcher.close()

    asyncio.run(scenario())


def test_closing_finishes_the_photos_in_the_queue() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate.run)
        waiting = asyncio.create_task(batcher.submit(1, NEVER))
        await gate.busy()
        closing = asyncio.create_task(batcher.close())
        gate.open.set()
        await closing
        assert (await waiting)[0] == 1

    asyncio.run(scenario())

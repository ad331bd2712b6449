"""Applications: which version answers a photo, how often it is computed, and by when there is an answer."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.catalog import ApplicationSettings
from app.errors import BadImage, BadRequest, QueueTimeout, Unavailable
from app.metrics import Metrics
from app.serving import application
from app.serving.application import AnswerCache, Application, DefaultPrediction
from app.serving.predictor import Prediction, Score

SECONDS = 60


class Version:
    """An endpoint that computes when the test lets it; `asked` are its photos."""

    card: Any = None

    def __init__(self, name: str = "cat", seconds: float = 0.0, at_once: int = 1) -> None:
        self.asked: list[bytes] = []
        self.cancelled = 0
        self._name, self._seconds = name, seconds
        self._cores = asyncio.Semaphore(at_once)
        self.released = asyncio.Event()
        self.released.set()

    async def predict(self, data: bytes, seconds: float) -> Prediction:
        self.asked.append(data)
        if data == b"broken":
            raise BadImage("broken")
        try:
            await self.released.wait()
            async with self._cores:
                await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Prediction(self._name, 0.75, None, False, (Score(self._name, 0.75), Score("dog", 0.25)))

    async def ask(self, question: str, data: bytes, seconds: float, *arguments: str) -> tuple[str, ...]:
        return self._name, question, *arguments


def linked(metrics: Metrics | None = None, **settings: Any) -> tuple[Application, Version, Version]:
    """An application of two versions, v1 and v2."""
    v1, v2 = Version("v1"), Version("v2")
    link = ApplicationSettings(**{"model": "pets", "version": "v1", **settings})
    return Application("pets", link, {"pets/v1": v1, "pets/v2": v2}, metrics or Metrics()), v1, v2


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario()

    asyncio.run(limited())


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of one line of the metrics."""
    return metrics._registry.get_sample_value(f"fastai_now_{name}", labels) or 0.0


def test_a_photo_is_answered_by_the_linked_version_and_the_answer_names_it() -> None:
    async def scenario() -> None:
        pets, v1, v2 = linked()
        answer = await pets.predict(b"photo")
        assert (answer.version, answer.prediction.result, answer.reason) == ("pets/v1", "v1", "")
        assert (v1.asked, v2.asked) == ([b"photo"], [])

    run(scenario)


def test_a_request_may_pin_a_version_that_there_is() -> None:
    async def scenario() -> None:
        pets, _, _ = linked()
        assert (await pets.predict(b"photo", "v2")).version == "pets/v2"
        answer = await pets.ask("explain", b"photo", "dog", pinned="v2")
        assert answer == (("v2", "explain", "dog"), "pets/v2")
        with pytest.raises(BadRequest, match=r"no version 'v3' of pets; there are v1, v2") as caught:
            await pets.predict(b"photo", "v3")
        assert caught.value.code == "unknown-version"

    run(scenario)


@given(share=st.floats(0, 1), digest=st.binary(min_size=32, max_size=32))
def test_the_canary_gets_the_digests_below_its_share(share: float, digest: bytes) -> None:
    async def scenario() -> None:
        pets, _, _ = linked(canary="v2", share=share)
        drawn = int(digest.hex()[:16], 16) / 16**16
        assert pets.choose(digest) == ("v2" if drawn < share else "v1")
        # a larger share keeps the photos of a smaller one
        larger, _, _ = linked(canary="v2", share=min(1.0, share * 1.5))
        assert pets.choose(digest) == "v1" or larger.choose(digest) == "v2"

    run(scenario)


def test_a_fifth_of_2000_photos_goes_to_the_canary_and_the_same_ones_again() -> None:
    async def scenario() -> None:
        pets, _, _ = linked(canary="v2", share=0.2)
        photos = [number.to_bytes(4) for number in range(2000)]
        first = [(await pets.predict(photo)).version for photo in photos]
        assert 360 <= Counter(first)["pets/v2"] <= 440
        assert first == [(await pets.predict(photo)).version for photo in photos]

    run(scenario)


def test_equal_photos_at_once_are_computed_once() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        pets, v1, _ = linked(metrics)
        v1.released.clear()
        asked = [asyncio.create_task(pets.predict(photo)) for photo in (b"one", b"two", b"one") * 100]
        while len(v1.asked) < 2:
            await asyncio.sleep(0)
        v1.released.set()
        answers = await asyncio.gather(*asked)
        assert {answer.prediction.result for answer in answers} == {"v1"}
        assert sorted(v1.asked) == [b"one", b"two"]
        labels = {"application": "pets", "model": "pets", "version": "v1"}
        assert sample(metrics, "answers_total", source="computed", **labels) == 2
        assert sample(metrics, "answers_total", source="shared", **labels) == 298
        await pets.predict(b"one")  # without a cache a later one is computed again
        assert len(v1.asked) == 3

    run(scenario)


def test_a_computation_goes_on_while_one_client_waits_and_ends_with_the_last() -> None:
    async def scenario() -> None:
        pets, v1, _ = linked()
        v1.released.clear()
        first, second = (asyncio.create_task(pets.predict(b"photo")) for _ in range(2))
        while not v1.asked:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not v1.cancelled
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.sleep(0)
        assert v1.cancelled == 1
        v1.released.set()
        assert (await pets.predict(b"photo")).prediction.result == "v1"  # another computation

    run(scenario)


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    async def scenario() -> None:
        pets, v1, _ = linked(cache=10)
        results = await asyncio.gather(*(pets.predict(b"broken") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [BadImage] * 3
        assert len(v1.asked) == 1
        with pytest.raises(BadImage):
            await pets.predict(b"broken")
        assert len(v1.asked) == 2

    run(scenario)


def test_the_cache_answers_until_the_version_is_another_one() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        pets, v1, v2 = linked(metrics, cache=100)
        first = await pets.predict(b"photo")
        assert [await pets.predict(b"photo") for _ in range(999)] == [first] * 999
        labels = {"application": "pets", "model": "pets", "version": "v1"}
        assert sample(metrics, "answers_total", source="cache", **labels) == 999
        pets.relink(
            ApplicationSettings(model="pets", version="v2", cache=100), {"pets/v1": v1, "pets/v2": v2}
        )
        assert (await pets.predict(b"photo")).version == "pets/v2"
        assert (len(v1.asked), len(v2.asked)) == (1, 1)
        new = Version("v1 again")  # the same name with other settings
        pets.relink(
            ApplicationSettings(model="pets", version="v1", cache=100), {"pets/v1": new, "pets/v2": v2}
        )
        assert (await pets.predict(b"photo")).prediction.result == "v1 again"

    run(scenario)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 5))
def test_the_cache_keeps_the_latest_answers(asked: list[int], count: int) -> None:
    cache, latest = AnswerCache(count), list[int]()
    version: Any = object()
    for number in asked:
        key = version, bytes([number])
        kept = cache.get(key)
        assert (kept is not None) == (number in latest)
        assert kept is None or kept.result == str(number)
        cache.put(key, Prediction(str(number), 1.0, None, False, ()))
        latest = ([each for each in latest if each != number] + [number])[-count:] if count else []
        assert len(cache) == len(latest)


def test_the_bytes_of_the_cache_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "CACHE_BYTES", 100_000)
    cache, version = AnswerCache(1_000_000), object()
    scores = tuple(Score(f"class {number}", 0.001) for number in range(1000))
    for number in range(100):
        cache.put((version, bytes([number])), Prediction("class 0", 0.001, None, False, scores))  # type: ignore
    assert 1 <= len(cache) <= 5


def test_a_late_answer_is_replaced_by_the_flagged_default() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        pets, v1, _ = linked(metrics, objective_ms=20, default="pet")
        v1.released.clear()
        answer = await pets.predict(b"photo")
        assert isinstance(answer.prediction, DefaultPrediction)
        assert (answer.prediction.result, answer.prediction.default) == ("pet", True)
        assert (answer.prediction.unsure, answer.prediction.confidence) == (True, 0.0)
        assert answer.prediction.default_explanation == "There was no answer within 20 ms."
        assert answer.reason == "late"
        labels = {"application": "pets", "model": "pets", "version": "v1"}
        assert sample(metrics, "defaults_total", reason="late", **labels) == 1
        await asyncio.sleep(0)
        assert v1.cancelled == 1  # nobody waits for it
        v1.released.set()
        assert (await pets.predict(b"photo")).prediction.result == "v1"

    run(scenario)


def test_without_an_objective_a_version_that_never_answers_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(application, "PATIENCE", 0.02)

    async def scenario() -> None:
        pets, v1, _ = linked()
        v1.released.clear()
        with pytest.raises(QueueTimeout):
            await pets.predict(b"photo")

    run(scenario)


def test_a_version_that_is_too_busy_gives_the_default_at_once() -> None:
    class Busy(Version):
        async def predict(self, data: bytes, seconds: float) -> Prediction:
            raise Unavailable("64 photos are already waiting.", retry_after=1)

    async def scenario() -> None:
        link = ApplicationSettings(model="pets", version="v1", objective_ms=1000)
        pets = Application("pets", link, {"pets/v1": Busy()}, Metrics())
        assert (await pets.predict(b"photo")).reason == "overloaded"
        pets.relink(ApplicationSettings(model="pets", version="v1"), {"pets/v1": Busy()})
        with pytest.raises(Unavailable):
            await pets.predict(b"photo")

    run(scenario)


@pytest.mark.alone
def test_three_times_the_capacity_gets_real_answers_in_time_and_the_next_client_too() -> None:
    async def scenario() -> None:
        link = ApplicationSettings(model="pets", version="v1", objective_ms=400)
        version = Version("v1", seconds=0.02, at_once=2)  # 100 a second
        pets = Application("pets", link, {"pets/v1": version}, Metrics())
        times, reals, end = list[float](), 0, time.monotonic() + 4

        async def client(number: int) -> None:
            nonlocal reals
            for count in range(10_000):
                if (start := time.monotonic()) >= end:
                    return
                answer = await pets.predict(f"{number} {count}".encode())
                times.append(time.monotonic() - start)
                reals += not answer.reason
                if answer.reason == "overloaded":  # the server pauses such a client
                    await asyncio.sleep(0.25)

        await asyncio.gather(*(client(number) for number in range(120)))
        times.sort()
        assert times[int(0.99 * len(times))] < 0.48
        assert reals > 0.8 * 4 * 95
        assert not (await pets.predict(b"afterwards")).reason

    run(scenario)


def test_large_photos_are_hashed_as_small_ones() -> None:
    async def scenario() -> None:
        for size in (10, 256 * 1024, 3_000_000):
            assert await application._sha256(b"x" * size) == hashlib.sha256(b"x" * size).digest()

    run(scenario)

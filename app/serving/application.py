"""An application: which version answers a photo, from a cache, and by when. Knows neither HTTP nor engines.

The versions may be in this process or on other machines: they only have to be an Endpoint.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Final, Literal, Protocol

import msgspec
from msgspec import Struct

from app.catalog import ApplicationSettings
from app.errors import BadRequest, QueueTimeout, Unavailable
from app.metrics import Metrics
from app.serving.admission import Admission
from app.serving.card import ModelCard
from app.serving.predictor import Prediction, Score
from app.settings import Settings

PATIENCE: Final = 30.0  # seconds without an objective: long enough for a replica that has to be started first
CACHE_BYTES: Final = 64_000_000  # of the kept answers of an application: 3,000 of a thousand classes
HASHED_AT_ONCE: Final = 256 * 1024  # bytes, in a quarter of a millisecond; more are hashed on a thread


# the names of Predictor's methods; "explain" takes a label
Question = Literal["explain", "nearest", "picture"]


class Endpoint(Protocol):
    """An open version of a model, here or elsewhere."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def settings(self) -> Settings: ...

    async def predict(self, data: bytes, seconds: float) -> Prediction:
        """Answer a photo within `seconds`. Raises RequestError."""

    async def ask(self, question: Question, data: bytes, seconds: float, *arguments: str) -> Any:
        """Answer another question about a photo within `seconds`. Raises RequestError."""

    async def close(self) -> None:
        """Finish the photos under way, and close the version."""


class DefaultPrediction(Prediction, frozen=True, kw_only=True):
    """The default of an application, in place of an answer that would be late."""

    default: bool = True
    default_explanation: str


class Answer(Struct, frozen=True):
    """A Prediction, and the version that it is of, such as "garments/v1"; "" of the one model of a server.

    `reason` is a short name of the cause of a default, "" if the prediction is the model's.
    """

    prediction: Prediction
    version: str = ""
    reason: str = ""


class Single:
    """The one model of a server without applications."""

    def __init__(self, version: Endpoint) -> None:
        self.card = version.card
        self._version = version

    async def predict(self, data: bytes, pinned: str = "") -> Answer:
        """Answer a photo. Raises RequestError."""
        return Answer(await self._version.predict(data, math.inf))

    async def ask(
        self, question: Question, data: bytes, *arguments: str, pinned: str = ""
    ) -> tuple[Any, str]:
        """Return the answer to a question about a photo. Raises RequestError."""
        return await self._version.ask(question, data, math.inf, *arguments), ""


class AnswerCache:
    """The latest answers, packed: at most `count` of them, and CACHE_BYTES."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes = 0
        self._kept: OrderedDict[tuple[Endpoint, bytes], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple[Endpoint, bytes]) -> Prediction | None:
        """Return the kept answer, or None."""
        packed = self._kept.get(key)
        if packed is None:
            return None
        self._kept.move_to_end(key)
        return msgspec.msgpack.decode(packed, type=Prediction)

    def put(self, key: tuple[Endpoint, bytes], answer: Prediction) -> None:
        """Keep an answer; forget the ones that were not asked for the longest."""
        if self._count and key not in self._kept:
            self._kept[key] = msgspec.msgpack.encode(answer)
            self._bytes += len(self._kept[key])
            self._shrink()

    def restrict(self, count: int, endpoints: Mapping[str, Endpoint]) -> None:
        """Keep at most `count` answers from now on, and those of these endpoints only."""
        self._count = count
        for key in [key for key in self._kept if key[0] not in endpoints.values()]:
            self._bytes -= len(self._kept.pop(key))
        self._shrink()

    def _shrink(self) -> None:
        while len(self._kept) > self._count or self._bytes > CACHE_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


class Flight:
    """A computation under way, and how many requests wait for it."""

    def __init__(self, task: "asyncio.Task[Prediction]") -> None:
        self.task = task
        self.waiting = 0
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to ask

    async def answer(self) -> Prediction:
        """Await the answer; cancel the computation once nobody waits for it."""
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.task.cancel()


class Application:
    """An application that is linked to versions. To be used in one event loop."""

    def __init__(
        self,
        name: str,
        settings: ApplicationSettings,
        versions: Mapping[str, Endpoint],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Link the application `name` to versions by their names, such as "garments/v1"."""
        self._name = name
        self._metrics = metrics
        self._clock = clock
        self._cache = AnswerCache(settings.cache)
        self._flights: dict[tuple[Endpoint, bytes], Flight] = {}
        self._gates: dict[Endpoint, Admission] = {}
        self._shown: list[tuple[str, str, str]] = []  # labels of the shares in the metrics
        self.relink(settings, versions)

    def relink(self, settings: ApplicationSettings, versions: Mapping[str, Endpoint]) -> None:
        """Take other versions from now on; photos under way keep the version that they have."""
        prefix = f"{settings.model}/"
        self._settings = settings
        self._versions = {
            name.removeprefix(prefix): version
            for name, version in versions.items()
            if name.startswith(prefix)
        }
        self._gates = {each: gate for each, gate in self._gates.items() if each in self._versions.values()}
        self._cache.restrict(settings.cache, self._versions)
        linked = {settings.version: 1 - settings.share, settings.canary: settings.share}
        for labels in self._shown:
            self._metrics.share.remove(*labels)
        self._shown = [(self._name, settings.model, name) for name in self._versions]
        for labels in self._shown:
            self._metrics.share.labels(*labels).set(linked.get(labels[2], 0))
        self._metrics.objective.labels(self._name).set(settings.objective_ms / 1000)

    @property
    def card(self) -> ModelCard:
        """The card of the version that the application is linked to."""
        return self._versions[self._settings.version].card

    def choose(self, digest: bytes, pinned: str = "") -> str:
        """Return the version for the photo with this SHA-256: always the same one while the link stays.

        `pinned` asks for a version by its name. Raises BadRequest if there is none.
        """
        settings = self._settings
        if pinned:
            if pinned not in self._versions:
                raise BadRequest(
                    f"There is no version '{pinned[:80]}' of {settings.model}; there are "
                    f"{', '.join(self._versions)}.",
                    "unknown-version",
                )
            return pinned
        drawn = int.from_bytes(digest[:8]) / 2**64
        return settings.canary if drawn < settings.share else settings.version

    async def predict(self, data: bytes, pinned: str = "") -> Answer:
        """Answer a photo: from the cache, together with equal photos under way, or by its version.

        With an objective, the default replaces an answer that is late or would be. Raises RequestError.
        """
        start, digest = self._clock(), await _sha256(data)
        settings, name = self._settings, self.choose(digest, pinned)
        version, objective = self._versions[name], settings.objective_ms / 1000
        labels = (self._name, settings.model, name)
        try:
            async with asyncio.timeout(start + objective - self._clock() if objective else PATIENCE):
                prediction, source = await self._answer(version, digest, data, objective)
        except TimeoutError:
            if not objective:
                raise QueueTimeout from None
            gate = self._gate(version)
            gate.missed(objective, max(1, gate.in_flight))
            reason, why = "late", f"There was no answer within {settings.objective_ms} ms."
        except Unavailable as error:
            if not objective:
                raise
            reason, why = error.code, str(error)
        else:
            self._metrics.answers.labels(*labels, source).inc()
            self._metrics.answer_seconds.labels(*labels).observe(self._clock() - start)
            return Answer(prediction, f"{settings.model}/{name}")
        self._metrics.defaults.labels(*labels, reason).inc()
        scores = (Score(settings.default, 0.0),)
        default = DefaultPrediction(settings.default, 0.0, None, True, scores, default_explanation=why)
        return Answer(default, f"{settings.model}/{name}", reason)

    async def ask(
        self, question: Question, data: bytes, *arguments: str, pinned: str = ""
    ) -> tuple[Any, str]:
        """Ask the version that answers this photo; return its answer and its name. Raises RequestError."""
        settings, name = self._settings, self.choose(await _sha256(data), pinned)
        answer = await self._versions[name].ask(question, data, PATIENCE, *arguments)
        return answer, f"{settings.model}/{name}"

    async def _answer(
        self, version: Endpoint, digest: bytes, data: bytes, objective: float
    ) -> tuple[Prediction, str]:
        """Return the answer, and whether it was computed, shared or in the cache."""
        key = version, digest
        if kept := self._cache.get(key):
            return kept, "cache"
        flight, source = self._flights.get(key), "shared"
        if flight is None or flight.task.done():
            gate = self._gate(version)
            if objective and not gate.in_time(objective):
                raise Unavailable(f"{gate.in_flight} photos are already waiting.", retry_after=1)
            work = self._compute(version, digest, data, objective)
            flight, source = Flight(asyncio.create_task(work)), "computed"
            self._flights[key] = flight
        return await flight.answer(), source

    async def _compute(self, version: Endpoint, digest: bytes, data: bytes, objective: float) -> Prediction:
        """Compute and keep an answer."""
        key = version, digest
        try:
            with self._gate(version).slot() if objective else nullcontext():
                answer = await version.predict(data, objective or PATIENCE)
        finally:
            if (flight := self._flights.get(key)) and flight.task is asyncio.current_task():
                del self._flights[key]
        if version in self._versions.values():
            self._cache.put(key, answer)
        return answer

    def _gate(self, version: Endpoint) -> Admission:
        """Return the photos under way of a version, with the estimate of its pace."""
        return self._gates.setdefault(version, Admission(max_wait=math.inf))


async def _sha256(data: bytes) -> bytes:
    if len(data) <= HASHED_AT_ONCE:
        return hashlib.sha256(data).digest()
    return (await asyncio.to_thread(hashlib.sha256, data)).digest()

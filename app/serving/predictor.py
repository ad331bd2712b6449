"""From a photo to its answer: `await predictor.predict(bytes)`.

The server and the command line await the same method. Knows nothing of HTTP, nor how the model was opened.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta, Struct
from PIL import Image

from app.engines.contract import Output
from app.engines.grad_cam import Explanation
from app.errors import BadOutput, NotExplained
from app.metrics import Metrics
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.model import Model
from app.serving.threads import Threads

Result = TypeVar("Result")
Share = Annotated[float, Meta(ge=0, le=1)]


class Score(Struct, frozen=True):
    """A class and its probability."""

    label: str
    score: Share


class Prediction(Struct, frozen=True):
    """The answer to one photo: all classes as `predictions`, the likeliest first; `result` is its label.

    With `multi_label`, `result` is every label from the threshold on, joined by ";" as fastai prints them.
    `familiarity` is the highest cosine similarity to any proof photo, from -1 to 1; None without a proof.
    """

    result: str
    confidence: Share
    familiarity: float | None
    unsure: bool
    predictions: tuple[Score, ...]


class Predictor:
    """Answers photos with an open model: queued, batched, admitted. To be closed."""

    def __init__(self, model: Model, metrics: Metrics, shared: Threads | None = None) -> None:
        """Use the threads `shared`, which the caller closes, or threads of its own."""
        self.card = model.card
        self.familiarity = model.familiarity
        self._model = model
        self._shared = shared
        self._threads = shared or Threads()
        stage = metrics.seconds.labels

        def timed(items: Sequence[Any]) -> Sequence[Output]:
            with stage("engine").time():
                return model.run(items)

        self._batcher = Batcher(
            timed, metrics.batches.observe, stage("queue").observe, model.callers, self._threads.engine
        )
        self._admission = Admission()
        self._metrics = metrics

    @property
    def multi_label(self) -> bool:
        """Whether several classes may be right."""
        return self._model.rules.multi_label

    async def predict(self, data: bytes, deadline: float = math.inf) -> Prediction:
        """Answer the bytes of one photo.

        Raises RequestError: BadRequest, UnsupportedMedia or BadImage for an unusable picture, BadOutput for
        NaN or infinite scores, QueueTimeout if it waits beyond `deadline` (by time.monotonic). A photo that
        times out or is cancelled in the queue is not computed.
        """
        return self._prediction(await self.output(data, deadline))

    async def output(self, data: bytes, deadline: float = math.inf) -> Output:
        """Return the network's output for the bytes of one photo. Raises the errors of `predict`."""
        with self._metrics.seconds.labels("decode").time():
            item = await self._decoded(self._model.prepare, data, deadline)
        return await self._batcher.submit(item, deadline)

    async def apply(self, work: Callable[[Any], bytes], data: bytes, deadline: float = math.inf) -> bytes:
        """Return `work` of the upright RGB image that the network is shown. Raises the errors of `decode`."""
        return await self._decoded(work, data, deadline)

    async def explain(self, data: bytes, deadline: float = math.inf, label: str = "") -> Explanation:
        """Return where on the photo the network found the class `label`, or the likeliest one.

        Raises the errors of `predict`, BadRequest for an unknown class, NotExplained.
        """
        if (explain := self._model.explain) is None:
            raise NotExplained(
                'There are no heat maps with engine = "fastai", nor of a whole ONNX network; a checkpoint '
                'with engine = "auto" has them. POST /analyze answers as usual.'
            )
        return await self._decoded(lambda image: explain(image, label), data, deadline)

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Enter the queue; yield the deadline (by time.monotonic). Raises Unavailable if it is full."""
        with self._admission.slot() as deadline, self._metrics.in_flight.track_inprogress():
            yield deadline

    async def _decoded(self, work: Callable[[Image.Image], Result], data: bytes, deadline: float) -> Result:
        decode = self._threads.decoder.apply
        return await decode(work, data, deadline, self._model.exif, self._model.decode_size)

    def _prediction(self, output: Output) -> Prediction:
        """Return the answer in words."""
        probabilities, rules, model = output.probabilities, self._model.rules, self._model
        if not np.isfinite(probabilities).all():
            raise BadOutput("The network produced NaN or infinite scores for this picture; try another.")
        order = np.argsort(-probabilities, kind="stable")
        scores = tuple(Score(self.card.classes[index], float(probabilities[index])) for index in order)
        confidence = scores[0].score
        result = scores[0].label
        if rules.multi_label:
            result = ";".join(s.label for s in scores if s.score >= rules.threshold)
        familiarity = model.familiarity(output) if model.familiarity else None
        unfamiliar = familiarity is not None and familiarity < rules.unfamiliar_below
        unsure = confidence < rules.unsure_below or unfamiliar
        return Prediction(result, confidence, familiarity, unsure, scores)

    async def close(self) -> None:
        """Finish the photos in the queue and end the threads, unless they are shared."""
        await self._batcher.close()
        if self._shared is None:
            self._threads.close()

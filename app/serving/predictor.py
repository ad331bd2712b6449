"""From a photo to its answer: `await predictor.predict(bytes)`.

The server and the command line await the same method. Knows nothing of HTTP, nor how the model was opened.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from app.engines.contract import Output
from app.engines.grad_cam import Explanation
from app.errors import BadOutput, NotExplained
from app.metrics import Metrics
from app.photos.pool import Decoder
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.model import Model

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

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self.card = model.card
        self.familiarity = model.familiarity
        self._model = model
        self._decoder = Decoder(model.exif, model.decode_size)
        stage = metrics.seconds.labels

        def timed(items: Sequence[Any]) -> Sequence[Output]:
            with stage("engine").time():
                return model.run(items)

        self._batcher = Batcher(timed, metrics.batches.observe, stage("queue").observe, model.callers)
        self._admission = Admission()
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self._admission.in_flight)

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
            item = await self._decoder.apply(self._model.prepare, data, deadline)
        return await self._batcher.submit(item, deadline)

    async def apply(self, work: Callable[[Any], bytes], data: bytes, deadline: float = math.inf) -> bytes:
        """Return `work` of the upright RGB image that the network is shown. Raises the errors of `decode`."""
        return await self._decoder.apply(work, data, deadline)

    async def explain(self, data: bytes, deadline: float = math.inf, label: str = "") -> Explanation:
        """Return where on the photo the network found the class `label`, or the likeliest one.

        Raises the errors of `predict`, BadRequest for an unknown class, NotExplained.
        """
        if (explain := self._model.explain) is None:
            raise NotExplained(
                'There are no heat maps with engine = "fastai", nor of a whole ONNX network; a checkpoint '
                'with engine = "auto" has them. POST /analyze answers as usual.'
            )
        return await self._decoder.apply(lambda image: explain(image, label), data, deadline)

    def slot(self) -> AbstractContextManager[float]:
        """Return a place in the queue, entered with its deadline. Raises Unavailable if the queue is full."""
        return self._admission.slot()

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
        """Finish the photos in the queue and end the threads."""
        await self._batcher.close()
        self._decoder.close()

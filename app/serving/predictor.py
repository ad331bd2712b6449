"""A model ready to answer: `await predictor.predict(bytes)`.

The server and the command line await the same method. Knows nothing of HTTP, nor how it was opened.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from app.engines.contract import Output, Prepare, Run
from app.engines.grad_cam import Explainer, Explanation
from app.errors import BadOutput, NotExplained
from app.metrics import Metrics
from app.photos.pool import Decoder
from app.photos.transforms import Preprocess
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.precision import Precision
from app.serving.proof import ProofResult
from app.settings import Settings
from app.types import Float32

Share = Annotated[float, Meta(ge=0, le=1)]


class Score(Struct, frozen=True):
    """A class and its probability."""

    label: str
    score: Share


class Prediction(Struct, frozen=True):
    """The answer to one photo. `predictions` are all classes, the likeliest first; `result` is its label.

    With `multi_label`, `result` is every label from the threshold on, joined by ";" as fastai prints them.
    `familiarity` is how much the photo is like the one of the proof that it is most like, from -1 to 1: the
    cosine of their features; None without a proof.
    """

    result: str
    confidence: Share
    familiarity: float | None
    unsure: bool
    predictions: tuple[Score, ...]


class ModelCard(Struct, frozen=True):
    """What is being served."""

    architecture: str
    classes: tuple[str, ...]
    fastai: int | None  # the generation that wrote it, where that is known
    container: str
    engine: str
    preprocess: Preprocess
    exif: str
    proof: ProofResult | None
    precision: Precision
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
        downscale = settings.jpeg_downscale and settings.engine != "fastai"  # which is the reference
        self._decoder = Decoder(settings.exif, card.preprocess.least if downscale else None)
        stage = metrics.seconds.labels

        def timed(items: Sequence[Any]) -> Sequence[Output]:
            with stage("engine").time():
                return run(items)

        self._batcher = Batcher(timed, metrics.batches.observe, stage("queue").observe)
        self._admission = Admission()
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self._admission.in_flight)
        self._reference_features = known  # (photos, features) of the proof, each of length 1
        self._explainer = explainer

    @property
    def multi_label(self) -> bool:
        """Whether several classes may be right."""
        return self._settings.multi_label

    async def predict(self, data: bytes, deadline: float = math.inf) -> Prediction:
        """The answer to the bytes of one photo.

        Raises RequestError: BadRequest, UnsupportedMedia or BadImage for what is no usable picture, BadOutput
        when the network's answer is no number, Unavailable when it waits beyond `deadline` (in the time of
        time.monotonic). Then, and when it is cancelled while it waits, it is not computed.
        """
        with self._metrics.seconds.labels("decode").time():
            item = await self._decoder.apply(self._prepare, data, deadline)
        answer = await self._batcher.submit(item, deadline)
        return self._prediction(answer)

    async def explain(self, data: bytes, deadline: float = math.inf, label: str = "") -> Explanation:
        """Where on the photo is what speaks for the class `label`, or for the likeliest one.

        Raises what `predict` raises, BadRequest for an unknown class, NotExplained.
        """
        if self._explainer is None:
            raise NotExplained(
                'There are no heat maps with engine = "fastai", nor of a whole ONNX network; a checkpoint '
                'with engine = "auto" has them. POST /analyze answers as usual.'
            )
        explainer = self._explainer
        return await self._decoder.apply(lambda image: explainer(image, label), data, deadline)

    def slot(self) -> AbstractContextManager[float]:
        """A place among those that wait, and the deadline until which it is worth it. Raises Unavailable."""
        return self._admission.slot()

    def _prediction(self, answer: Output) -> Prediction:
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
        if self._reference_features is not None:
            familiarity = float((self._reference_features @ l2_normalize(answer.features)).max())
        unfamiliar = familiarity is not None and familiarity < settings.unfamiliar_below
        unsure = confidence < settings.unsure_below or unfamiliar
        return Prediction(result, confidence, familiarity, unsure, scores)

    async def close(self) -> None:
        """Finish what is under way and end the threads."""
        await self._batcher.close()
        self._decoder.close()


def l2_normalize(vectors: Float32) -> Float32:
    """The same directions with length 1; what has no direction, all zeros, stays so and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]

"""From the settings to something that answers: `open_predictor(settings)`, then `await
predictor.predict(bytes)`.

The server and the command line await the same method. Knows nothing of HTTP.
"""

import asyncio
import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.batcher import Batcher
from app.checkpoint import Checkpoint, read_checkpoint
from app.download import fetch
from app.engine import Answer, Engine
from app.errors import BadOutput, CheckpointError, ClassesMismatch, Unavailable
from app.graphs import find_graph
from app.head import Head, read_head
from app.metrics import Metrics
from app.preprocess import Preprocess, decode
from app.proof import Answerer, Prepare, Proof, ProofResult, Run, prove, read_proof
from app.settings import Settings

MODELS: Final = Path(__file__).parent / "models"
MAX_INSIDE: Final = 32  # requests between upload and answer: more would wait longer than people do

Float32 = npt.NDArray[np.float32]
Report = Callable[[str, int | None], None]  # the phase of opening, and its percent if known

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """A class and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer to one photo. `predictions` are all classes, the likeliest first; `result` is its label.

    With `multi_label`, `result` is every label from the threshold on, joined by ";" as fastai prints them.
    `familiarity` is how much the photo is like the one of the proof that it is most like, from -1 to 1: the
    cosine of their features; None without a proof.
    """

    result: str
    confidence: float
    familiarity: float | None
    unsure: bool
    predictions: tuple[Score, ...]


@dataclass(frozen=True)
class ModelCard:
    """What is being served."""

    architecture: str
    classes: tuple[str, ...]
    fastai: int
    container: str
    engine: str
    preprocess: Preprocess
    exif: str
    proof: ProofResult | None
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
    ) -> None:
        self.card = card
        self._settings = settings
        self._prepare = prepare
        self._batcher = Batcher(run)
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._metrics = metrics
        self._known = known  # (photos, features) of the proof, each of length 1
        self._inside = 0

    async def predict(self, data: bytes) -> Prediction:
        """The answer to the bytes of one photo.

        Raises RequestError: BadRequest, UnsupportedMedia or BadImage for what is no usable picture, BadOutput
        when the network's answer is no number. Cancelled while it waits, it is not computed.
        """
        loop = asyncio.get_running_loop()
        with self._metrics.seconds.labels("decode").time():
            item = await loop.run_in_executor(self._decoders, self._decode, data)
        with self._metrics.seconds.labels("engine").time():
            answer = await self._batcher.submit(item)
        return self._prediction(answer)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place among those that are under way, from before an upload is read. Raises Unavailable."""
        if self._inside >= MAX_INSIDE:
            raise Unavailable(f"{MAX_INSIDE} photos are under way already; try again shortly.", retry_after=5)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _decode(self, data: bytes) -> Any:
        return self._prepare(decode(data, self._settings.exif))

    def _prediction(self, answer: Answer) -> Prediction:
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
        if self._known is not None:
            familiarity = float((self._known @ _unit(answer.features)).max())
        unfamiliar = familiarity is not None and familiarity < settings.unfamiliar_below
        unsure = confidence < settings.unsure_below or unfamiliar
        return Prediction(result, confidence, familiarity, unsure, scores)

    async def close(self) -> None:
        """Finish what is under way and end the threads."""
        await self._batcher.close()
        self._decoders.shutdown()


async def open_predictor(settings: Settings, report: Report, metrics: Metrics) -> Predictor:
    """Download, read, build, warm up; `report` hears of each phase.

    Raises StartupError, whose message is one sentence for the person who deploys.
    """

    def progress(done: int, total: int | None) -> None:
        report("downloading", done * 100 // total if total else None)

    path = await fetch(
        settings.model_url, MODELS, sha256=settings.model_sha256, verify=read_checkpoint, progress=progress
    )
    proof = None
    if settings.proof_url:
        file = await fetch(settings.proof_url, MODELS, verify=read_proof, progress=progress)
        proof = await asyncio.to_thread(read_proof, file)  # megabytes of base64: not on the event loop
    report("reading", None)
    return await asyncio.to_thread(partial(_open, path, proof, settings, report, metrics))


def _open(path: Path, proof: Proof | None, settings: Settings, report: Report, metrics: Metrics) -> Predictor:
    """What follows the download, read downwards: checkpoint, engine, warm-up, proof."""
    checkpoint = read_checkpoint(path)
    _check_numbers(checkpoint)
    report("building", None)
    build = _build_learner if settings.engine == "fastai" else _build_engine
    architecture, head, answerer = build(checkpoint, settings)
    preprocess = _preprocess(settings, head)
    prepare, run = answerer(preprocess)

    report("warming up", None)
    black = Image.new("RGB", preprocess.size)
    if not np.isfinite(run([prepare(black)])[0].probabilities).all():
        raise CheckpointError(
            "The checkpoint answers a black picture with what is no number: its weights are too large to "
            "compute with. Save a checkpoint from before the training diverged."
        )
    logger.info(
        "serving %s (fastai v%d, %d classes); pipeline %s, %d x %d px, mean %s, std %s",
        *(architecture, head.generation, head.outputs, preprocess.pipeline, *preprocess.size),
        *(list(preprocess.mean), list(preprocess.std)),
    )
    result = known = None
    if proof:
        report("proving", None)
        result, features = prove(proof, settings.classes, answerer, preprocess, settings.exif)
        known = _unit(features)
        logger.info(
            "the proof agrees: %d photos, largest difference %.5f", result.photos, result.worst_difference
        )
    card = _card(path, checkpoint, settings, architecture, head, preprocess, result)
    return Predictor(card, settings, prepare, run, metrics, known)


def _unit(vectors: Float32) -> Float32:
    """The same directions with length 1; what has no direction, all zeros, stays so and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]


def _check_numbers(checkpoint: Checkpoint) -> None:
    for name, array in checkpoint.arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"The checkpoint holds weights that are no numbers (NaN or infinite, in {name}): the "
                "training diverged. Save a checkpoint from before it did."
            )


Built = tuple[str, Head, Answerer]


def _build_engine(checkpoint: Checkpoint, settings: Settings) -> Built:
    """The shipped graph that fits, in ONNX Runtime."""
    graph = find_graph(checkpoint.arrays, settings.architecture)
    head = read_head(checkpoint.arrays, graph.channels)
    _check_classes(head, settings.classes)
    engine = Engine(graph, checkpoint.arrays, head, settings.multi_label)
    return graph.architecture, head, lambda preprocess: (preprocess, engine.run)


def _build_learner(checkpoint: Checkpoint, settings: Settings) -> Built:
    """The real fastai learner."""
    from app.learner import LearnerEngine, rebuild  # torch and fastai: only when asked for

    architecture = settings.architecture or find_graph(checkpoint.arrays).architecture
    model, head = rebuild(architecture, checkpoint.arrays)
    _check_classes(head, settings.classes)

    def answerer(preprocess: Preprocess) -> tuple[Prepare, Run]:
        engine = LearnerEngine(model, head, settings.classes, preprocess, settings.multi_label)
        return engine.prepare, engine.run

    return architecture, head, answerer


def _check_classes(head: Head, classes: Sequence[str]) -> None:
    if head.outputs != len(classes):
        raise ClassesMismatch(
            f"The checkpoint has {head.outputs} outputs, the setting classes lists {len(classes)} names "
            f"({', '.join(classes)[:200]}). List all {head.outputs} in the order of your notebook: "
            f"learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if list(classes) != sorted(classes):
        logger.warning(
            "the class list is not in alphabetical order, but fastai sorts classes unless told otherwise: "
            "compare it with learn.dls.vocab, or every answer may be wrong (sorted: %s)",
            ", ".join(sorted(classes)),
        )


def _preprocess(settings: Settings, head: Head) -> Preprocess:
    """The pipeline that the settings name; for "auto" what the generation of the head did by default."""
    pipeline = settings.pipeline
    if pipeline == "auto":
        pipeline = "fastai1" if head.generation == 1 else "resize"
    return Preprocess(
        pipeline=pipeline,
        size=settings.image_size,
        method=settings.resize_method,
        pad_mode=settings.pad_mode,
        presize=settings.presize,
        val_xtra=settings.val_xtra,
        mean=settings.mean,
        std=settings.std,
    )


def _card(
    path: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    architecture: str,
    head: Head,
    preprocess: Preprocess,
    proof: ProofResult | None,
) -> ModelCard:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    packages = (
        ("onnxruntime", "numpy", "pillow") if settings.engine == "auto" else ("fastai", "torch", "pillow")
    )
    return ModelCard(
        architecture=architecture,
        classes=settings.classes,
        fastai=head.generation,
        container=checkpoint.container,
        engine="onnxruntime" if settings.engine == "auto" else settings.engine,
        preprocess=preprocess,
        exif=settings.exif,
        proof=proof,
        sha256=sha256,
        bytes=path.stat().st_size,
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
    )

"""From the settings to a Predictor: download, read, build, warm up, prove."""

import asyncio
import logging
import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from PIL import Image

from app.checkpoint import Checkpoint, read_checkpoint
from app.download import Fetched, fetch
from app.engine import Engine
from app.errors import CheckpointError, ClassesMismatch
from app.explain import Explainer, Look
from app.graphs import find_graph
from app.head import Head, read_head
from app.metrics import Metrics
from app.predictor import ModelCard, Predictor, unit
from app.preprocess import Preprocess
from app.proof import Answerer, Prepare, Proof, ProofResult, Run, prove, read_proof
from app.settings import Settings

MODELS: Final = Path(__file__).parent / "models"


class Report(Protocol):
    """Hears of the phase of opening, its percent if known, and of a download the bytes, so far and in all."""

    def __call__(
        self, phase: str, percent: int | None, received: int | None = None, total: int | None = None
    ) -> None: ...


logger = logging.getLogger(__name__)


async def open_predictor(settings: Settings, report: Report, metrics: Metrics) -> Predictor:
    """Download, read, build, warm up; `report` hears of each phase.

    Raises StartupError, whose message is one sentence for the person who deploys.
    """

    def progress(done: int, total: int | None) -> None:
        report("downloading", done * 100 // total if total else None, done, total)

    fetched = await fetch(
        settings.model_url, MODELS, sha256=settings.model_sha256, verify=read_checkpoint, progress=progress
    )
    proof = None
    if settings.proof_url:
        proof = (await fetch(settings.proof_url, MODELS, verify=read_proof, progress=progress)).content
    report("reading", None)
    return await asyncio.to_thread(partial(_open, fetched, proof, settings, report, metrics))


def _open(
    fetched: Fetched[Checkpoint], proof: Proof | None, settings: Settings, report: Report, metrics: Metrics
) -> Predictor:
    """What follows the download, read downwards: engine, warm-up, proof."""
    checkpoint = fetched.content
    _check_numbers(checkpoint)
    report("building", None)
    build = _build_learner if settings.engine == "fastai" else _build_engine
    architecture, head, answerer, look = build(checkpoint, settings)
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
        known = unit(features)
        logger.info(
            "the proof agrees: %d photos, largest difference %.5f", result.photos, result.worst_difference
        )
    checkpoint.release()  # ONNX Runtime has its own copy of the weights, in the order that it computes in
    card = _card(fetched, settings, architecture, head, preprocess, result)
    explain = None if look is None else Explainer(prepare, look, head, preprocess, settings.classes)
    return Predictor(card, settings, prepare, run, metrics, known, explain)


def _check_numbers(checkpoint: Checkpoint) -> None:
    for name, array in checkpoint.arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"The checkpoint holds weights that are no numbers (NaN or infinite, in {name}): the "
                "training diverged. Save a checkpoint from before it did."
            )


Built = tuple[str, Head, Answerer, Look | None]


def _build_engine(checkpoint: Checkpoint, settings: Settings) -> Built:
    """The shipped graph that fits, in ONNX Runtime."""
    graph = find_graph(checkpoint.arrays, settings.architecture)
    head = read_head(checkpoint.arrays, graph.channels)
    _check_classes(head, settings.classes)
    engine = Engine(graph, checkpoint.arrays, head, settings.multi_label)
    return graph.architecture, head, lambda preprocess: (preprocess, engine.run), engine.look


def _build_learner(checkpoint: Checkpoint, settings: Settings) -> Built:
    """The real fastai learner."""
    from app.learner import LearnerEngine, rebuild  # torch and fastai: only when asked for

    architecture = settings.architecture or find_graph(checkpoint.arrays).architecture
    model, head = rebuild(architecture, checkpoint.arrays)
    _check_classes(head, settings.classes)

    def answerer(preprocess: Preprocess) -> tuple[Prepare, Run]:
        engine = LearnerEngine(model, head, settings.classes, preprocess, settings.multi_label)
        return engine.prepare, engine.run

    return architecture, head, answerer, None  # one learner cannot look and predict at the same time


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
    fetched: Fetched[Checkpoint],
    settings: Settings,
    architecture: str,
    head: Head,
    preprocess: Preprocess,
    proof: ProofResult | None,
) -> ModelCard:
    packages = (
        ("onnxruntime", "numpy", "pillow") if settings.engine == "auto" else ("fastai", "torch", "pillow")
    )
    return ModelCard(
        architecture=architecture,
        classes=settings.classes,
        fastai=head.generation,
        container=fetched.content.container,
        engine="onnxruntime" if settings.engine == "auto" else settings.engine,
        preprocess=preprocess,
        exif=settings.exif,
        proof=proof,
        sha256=fetched.sha256,
        bytes=fetched.path.stat().st_size,
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
    )

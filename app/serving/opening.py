"""From the settings to a Predictor: download, read, build, warm up, prove."""

import asyncio
import importlib.util
import logging
import os
import platform
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import PIL
from msgspec import Struct
from msgspec.structs import replace
from PIL import Image

from app.checkpoints.reader import Checkpoint, read_checkpoint
from app.engines.contract import Answerer, Output, Prepare, Run
from app.engines.grad_cam import Explainer
from app.engines.int8 import quantize
from app.engines.onnx_runtime import Engine, OnnxEngine
from app.errors import ArchitectureUnknown, CheckpointError, ProofError
from app.fetching.download import Fetched, fetch, temporary_folder
from app.graphs.graph import Graph, read_graph, shipped_graphs
from app.metrics import Metrics
from app.photos.decode import decode
from app.photos.transforms import Preprocess
from app.progress import Report
from app.serving.precision import Precision, compare, measure_gain
from app.serving.predictor import ModelCard, Predictor, l2_normalize
from app.serving.proof import Proof, ProofResult, prove, read_proof, replay
from app.serving.proof import compare as compare_proof
from app.serving.resolve import (
    FORMS,
    REBUILT,
    Inspection,
    Network,
    check_numbers,
    complete,
    fitted,
    inspect,
    recognize,
)
from app.settings import MODELS, Settings
from app.types import Size

if TYPE_CHECKING:
    from app.fetching.transfer import Progress  # it brings aiohttp, which only a download needs


logger = logging.getLogger(__name__)


async def open_predictor(settings: Settings, report: Report, metrics: Metrics) -> Predictor:
    """Download, read, build, warm up; `report` hears of each phase.

    Raises StartupError, whose message is one sentence for the person who deploys.
    """
    progress = _downloading(report)
    fetched = await fetch(
        settings.model_url, MODELS, sha256=settings.model_sha256, verify=read_checkpoint, progress=progress
    )
    proof = None
    if settings.proof_url:
        proof = (await fetch(settings.proof_url, MODELS, verify=read_proof, progress=progress)).content
    report("reading", None)
    return await asyncio.to_thread(partial(_open, fetched, proof, settings, report, metrics))


def _downloading(report: Report) -> "Progress":
    """What hears of the bytes of a download and reports them as the phase that it is."""

    def progress(done: int, total: int | None) -> None:
        report("downloading", done * 100 // total if total else None, done, total)

    return progress


def _open(
    fetched: Fetched[Checkpoint], proof: Proof | None, settings: Settings, report: Report, metrics: Metrics
) -> Predictor:
    """What follows the download, read downwards: engine, warm-up, proof."""
    checkpoint = fetched.content
    check_numbers(checkpoint.arrays)
    report("building", None)
    built = _build(fetched, settings, report)
    settings, preprocess = built.settings, _preprocess(built.settings)
    prepare, run = built.answerer(preprocess)

    report("warming up", None)
    _warm_up(prepare, run, preprocess.size)
    logger.info(
        "serving %s (%s, %d classes); pipeline %s, %d x %d px, mean %s, std %s",
        *(built.architecture, FORMS[built.generation] if built.network else checkpoint.container),
        *(len(settings.classes), preprocess.pipeline),
        *(*preprocess.size, list(preprocess.mean), list(preprocess.std)),
    )
    result: ProofResult | None = None
    answers: Sequence[Output] = ()
    if proof:
        report("proving", None)
        result, answers = prove(proof, settings.classes, built.answerer, preprocess, settings.exif)
        logger.info(
            "the proof agrees: %d photos, largest difference %.5f", result.photos, result.worst_difference
        )
    built, answers, precision = _select_precision(built, proof, answers, preprocess)
    if proof and precision.used == "int8":
        prepare, run = built.answerer(preprocess)
        result = compare_proof(proof, answers)  # of what is served
    known = l2_normalize(np.stack([answer.features for answer in answers])) if answers else None
    checkpoint.release()  # ONNX Runtime has its own copy of the weights, in the order that it computes in
    card = _card(fetched, built, preprocess, result, precision)
    explain = None
    if built.engine and built.network:
        explain = Explainer(
            prepare, built.engine.predict_with_features, built.network.head, preprocess, settings.classes
        )
    return Predictor(card, settings, prepare, run, metrics, known, explain)


def _warm_up(prepare: Prepare, run: Run, size: Size) -> None:
    """Compute a black picture. Raises CheckpointError where that fails, or gives what is no number."""
    black = Image.new("RGB", size)
    try:
        warm = run([prepare(black)])
    except Exception as error:  # of ONNX Runtime and torch, which have no common class of their own
        raise CheckpointError(
            "The network cannot compute a picture of {} x {} px ({}): set image_size to what it was trained "
            "with.".format(*size, " ".join(str(error).split())[:200])
        ) from error
    if not np.isfinite(warm[0].probabilities).all():
        raise CheckpointError(
            "The checkpoint answers a black picture with what is no number: its weights are too large to "
            "compute with. Save a checkpoint from before the training diverged."
        )


async def inspect_file(location: str, report: Report) -> Inspection:
    """What there is to say of the checkpoint at a link or a path. Raises StartupError where it is none."""
    fetched = await fetch(location, MODELS, verify=read_checkpoint, progress=_downloading(report))
    report("reading", None)
    checkpoint, size = fetched.content, fetched.path.stat().st_size
    whole = await asyncio.to_thread(OnnxEngine, fetched.path) if checkpoint.container == "onnx" else None
    return await asyncio.to_thread(lambda: inspect(checkpoint, location, size, fetched.sha256, whole))


class LoadedModel(Struct, frozen=True):
    """What answers, and the settings that the checkpoint has completed. `network` and `engine` are None where
    no shipped graph computes the body; `packages` are what computes, the engine first.
    """

    architecture: str
    generation: int
    settings: Settings
    answerer: Answerer
    network: Network | None = None
    engine: Engine | None = None
    packages: tuple[str, ...] = ("onnxruntime", "numpy")


def _build(fetched: Fetched[Checkpoint], settings: Settings, report: Report) -> LoadedModel:
    """The engine that the settings and the file ask for."""
    checkpoint = fetched.content
    if checkpoint.container == "onnx":
        return _build_onnx(checkpoint, settings)
    if settings.engine == "fastai":
        return _build_learner(checkpoint, settings)
    try:
        network = recognize(checkpoint.arrays, settings.architecture, checkpoint.module)
    except ArchitectureUnknown as error:
        network = fitted(_own_graph(fetched, settings, report, error), checkpoint.arrays)
    complete_settings = _completed(settings, checkpoint, network)
    weights = network.graph.float32(network.arrays)
    engine = Engine(network.graph.path, weights, network.head, complete_settings.multi_label)
    return LoadedModel(
        network.graph.architecture,
        network.head.generation,
        complete_settings,
        lambda preprocess: (preprocess, engine.run),
        network,
        engine,
    )


def _select_precision(
    built: LoadedModel, proof: Proof | None, answers: Sequence[Output], preprocess: Preprocess
) -> tuple[LoadedModel, Sequence[Output], Precision]:
    """The same in int8, if the settings ask for it, the `answers` to the proof agree and it is quicker; its
    own answers; and why.

    Raises ProofError where the settings insist on int8 and it cannot be used.
    """
    settings, network, engine = built.settings, built.network, built.engine
    if settings.precision == "float32":
        return built, answers, Precision("float32", "the setting precision")
    if "fastai" in built.packages:
        precision = Precision("float32", 'engine = "fastai" computes as the notebook does')
    elif not (network and engine and network.graph.int8):
        precision = Precision("float32", f"{built.architecture} has no graph in int8")
    elif proof is None:
        precision = Precision("float32", "there is no proof_url, by whose photos int8 could be judged")
    else:
        pixels = (preprocess(decode(each.photo, settings.exif)) for each in proof.photos)
        numbers = quantize(network.graph, network.graph.int8, network.arrays, pixels)
        quick = Engine(network.graph.int8.path, numbers, network.head, settings.multi_label)
        quickened = replace(built, answerer=lambda preprocess: (preprocess, quick.run), engine=quick)
        found = replay(proof, quickened.answerer, preprocess, settings.exif)
        precision = compare(
            answers,
            found,
            measure_gain(engine, quick, preprocess.size),
            unsure_below=settings.unsure_below,
            threshold=settings.threshold if settings.multi_label else None,
            insist=settings.precision == "int8",
        )
        if precision.used == "int8":
            built, answers = quickened, found
    if precision.used != settings.precision != "auto":
        raise ProofError(
            f'The setting precision is "int8", but {precision.why}: set precision to "float32" or "auto".'
        )
    logger.info("computing in %s: %s", precision.used, precision.why)
    return built, answers, precision


def _build_onnx(checkpoint: Checkpoint, settings: Settings) -> LoadedModel:
    """A whole network that brings its own weights."""
    engine = OnnxEngine(checkpoint.path, settings.multi_label)
    complete_settings = _log_warnings(*complete(settings, checkpoint, 0, engine.outputs, engine.size))
    return LoadedModel("ONNX", 0, complete_settings, lambda preprocess: (preprocess, engine.run))


def _build_learner(checkpoint: Checkpoint, settings: Settings) -> LoadedModel:
    """The real fastai learner."""
    from app.engines.learner import LearnerEngine, rebuild  # torch and fastai: only when asked for

    network = recognize(checkpoint.arrays, settings.architecture)
    model, head = rebuild(network.graph.architecture, network.arrays)
    complete_settings = _completed(settings, checkpoint, network)

    def answerer(preprocess: Preprocess) -> tuple[Prepare, Run]:
        engine = LearnerEngine(
            model, head, complete_settings.classes, preprocess, complete_settings.multi_label
        )
        return engine.prepare, engine.run

    # no look: one learner cannot look and predict at the same time
    return LoadedModel(
        network.graph.architecture,
        head.generation,
        complete_settings,
        answerer,
        packages=("fastai", "torch"),
    )


def _completed(settings: Settings, checkpoint: Checkpoint, network: Network) -> Settings:
    head = network.head
    return _log_warnings(*complete(settings, checkpoint, head.generation, head.outputs, network.graph.size))


def _log_warnings(settings: Settings, notes: Sequence[str]) -> Settings:
    for note in notes:
        logger.warning("%s", note)
    return settings


def _own_graph(
    fetched: Fetched[Checkpoint], settings: Settings, report: Report, error: ArchitectureUnknown
) -> Graph:
    """A graph that is not shipped: made before, or by fastai and torch where they are installed. Raises
    `error`.
    """
    export, shipped = fetched.content.export, {graph.architecture for graph in shipped_graphs()}
    name = f"export-{fetched.sha256[:16]}" if export else settings.architecture
    if name in shipped or not re.fullmatch(r"[\w.-]+", name):  # it becomes the name of a file
        raise error
    here = os.access(MODELS, os.W_OK) or (MODELS / f"{name}.json").exists()
    path = (MODELS if here else temporary_folder()) / f"{name}.json"
    if not path.exists():
        if importlib.util.find_spec("fastai") is None:
            raise ArchitectureUnknown(f"{error}{REBUILT if export else ''}") from error
        from app.graphs.export import export_graph, export_module  # torch and fastai: only when needed

        report("exporting the graph", None)
        if export:
            size = export.known.get("image_size")
            export_module(export.module, fetched.content.arrays, name, path.parent, size)
        else:
            export_graph(name, path.parent)
    graph = read_graph(path)
    if not graph.fits(fetched.content.arrays):
        raise error
    return graph


def _preprocess(settings: Settings) -> Preprocess:
    """The pipeline that the complete settings name."""
    return Preprocess(
        pipeline="resize" if settings.pipeline == "auto" else settings.pipeline,
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
    built: LoadedModel,
    preprocess: Preprocess,
    proof: ProofResult | None,
    precision: Precision,
) -> ModelCard:
    settings = built.settings
    return ModelCard(
        architecture=built.architecture,
        classes=settings.classes,
        fastai=built.generation or None,
        container=fetched.content.container,
        engine=built.packages[0],
        preprocess=preprocess,
        exif=settings.exif,
        proof=proof,
        precision=precision,
        sha256=fetched.sha256,
        bytes=fetched.path.stat().st_size,
        versions={
            "python": platform.python_version(),
            **{name: str(sys.modules[name].__version__) for name in built.packages},  # torch has no plain str
            "pillow": PIL.__version__,
        },
    )

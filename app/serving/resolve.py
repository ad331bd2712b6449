"""What a checkpoint is, and how it is served: the network that fits it and the settings that it decides.

`serve` opens what `recognize` and `complete` say; `python -m app inspect` prints it. Nothing is computed
here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from app.checkpoints.module_tree import kinds, strange_modules
from app.checkpoints.reader import Checkpoint
from app.checkpoints.task import check_task
from app.checkpoints.unpickler import Call
from app.engines.head import Head, read_head
from app.engines.onnx_runtime import OnnxEngine
from app.errors import ArchitectureUnknown, CheckpointError, ClassesMismatch, StartupError
from app.graphs.graph import Graph, find_graph, fitting_graphs
from app.settings import Settings, with_overrides
from app.types import Arrays

FORMS = {1: "fastai v1", 2: "fastai v2", 0: "torchvision or timm"}  # of a head's generation
REBUILT = " Or serve it where requirements.txt is installed: there the network in the file is rebuilt."


class Network(Struct, frozen=True):
    """A checkpoint's weights under the names of the graph that they fit, and the head behind it."""

    graph: Graph
    arrays: Arrays
    head: Head


class Inspection(Struct, frozen=True):
    """What `python -m app inspect` says. `problem` is why the file is not served as it is, empty if it is.

    `outputs` is the number of classes, `size` the only (height, width) that the network takes; None where the
    file does not tell. `settings` is a settings.toml that serves the file; what is to be filled in there
    stands in a comment.
    """

    container: str
    writer: str
    architecture: str
    outputs: int | None
    size: tuple[int, int] | None
    classes: tuple[str, ...]
    transforms: Mapping[str, Any]
    bytes: int
    sha256: str
    served: bool
    problem: str
    notes: tuple[str, ...]
    settings: str


def recognize(arrays: Arrays, architecture: str = "", module: Call | None = None) -> Network:
    """The shipped network that a checkpoint's arrays are the weights of; `module` is its tree, if that is
    known.

    Raises NotAClassifier, ArchitectureUnknown, CheckpointError.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    check_task(shapes, kinds(module) if module else ())
    graph = find_graph(arrays, architecture)
    if module is None:
        return fitted(graph, arrays)
    if strange := strange_modules(module, graph.architecture):
        raise ArchitectureUnknown(
            f"The network in the file has the names and shapes of {graph.architecture}, but not its layers: "
            f"it has {', '.join(sorted(strange))[:200]}."
        )
    try:
        return fitted(graph, arrays)
    except CheckpointError as error:  # a head that is not understood, but is in the file
        raise ArchitectureUnknown(str(error)) from error


def fitted(graph: Graph, arrays: Arrays) -> Network:
    """The same for a graph that is known to fit."""
    renamed = graph.rename(arrays)
    return Network(graph, renamed, read_head(renamed, graph.channels, graph.head))


def check_numbers(arrays: Arrays) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    for name, array in arrays.items():
        with np.errstate(over="ignore", invalid="ignore"):
            total = array.sum()  # finite only if all are, and a third of the time
        if not (np.isfinite(total) or np.isfinite(array).all()):
            raise CheckpointError(
                f"The checkpoint holds weights that are no numbers (NaN or infinite, in {name}): the "
                "training diverged. Save a checkpoint from before it did."
            )


def complete(
    settings: Settings, checkpoint: Checkpoint, generation: int, outputs: int, size: tuple[int, int] | None
) -> tuple[Settings, list[str]]:
    """The settings with all that the file decides filled in where they are silent; and what to warn of.

    `generation` and `outputs` are of the head, `size` is the only one the network takes, if there is one.
    Raises CheckpointError where the file wants what is not reproduced, ClassesMismatch, SettingsError.
    """
    if checkpoint.export and checkpoint.export.unserved and not settings.is_set("pipeline"):
        raise CheckpointError(
            f"The file is a {checkpoint.export.writer}, and {'; '.join(checkpoint.export.unserved)}. Set "
            "pipeline (with image_size and what belongs to it) to what comes nearest, and compare with a "
            "proof."
        )
    known = {"pipeline": "fastai1" if generation == 1 else "resize", **checkpoint.known}
    if size:
        known["image_size"] = size
    silent = {name for name in known if not settings.is_set(name) or getattr(settings, name) == "auto"}
    notes = [
        f"{name} is {_shown(getattr(settings, name))} in the settings, but the file says {_shown(value)}: "
        "the setting is used"
        for name, value in checkpoint.known.items()
        if name not in {*silent, "classes"} and not _same(getattr(settings, name), value)
    ]
    settings = with_overrides(settings, {name: known[name] for name in silent})
    if size and settings.image_size != size:
        raise CheckpointError(
            f"The network takes pictures of {size[0]} x {size[1]} px only, but image_size is "
            f"{settings.image_size}: take it out of the settings."
        )
    return settings, notes + _check_classes(settings.classes, checkpoint.known.get("classes", ()), outputs)


def _check_classes(classes: Sequence[str], known: Sequence[str], outputs: int) -> list[str]:
    """What to warn of. Raises ClassesMismatch where the names cannot be those of the outputs."""
    if not classes:
        raise ClassesMismatch(
            f"The file has {outputs} outputs and does not say their names: list all {outputs} in the setting "
            "classes, in the order of your notebook: learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if known and list(classes) != list(known):
        raise ClassesMismatch(
            f"The setting classes lists {', '.join(classes)[:200]}, but the file itself says "
            f"{', '.join(known)[:200]}: take classes out of the settings."
        )
    if outputs != len(classes):
        raise ClassesMismatch(
            f"The checkpoint has {outputs} outputs, the setting classes lists {len(classes)} names "
            f"({', '.join(classes)[:200]}). List all {outputs} in the order of your notebook: "
            "learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if not known and list(classes) != sorted(classes):
        return [
            "the class list is not in alphabetical order, but fastai sorts classes unless told otherwise: "
            "compare it with learn.dls.vocab, or every answer may be wrong (sorted: "
            f"{', '.join(sorted(classes))})"
        ]
    return []


def _same(setting: Any, known: Any) -> bool:
    if isinstance(known, tuple) and known and isinstance(known[0], float):
        return bool(np.allclose(setting, known, atol=1e-4))  # the file's are float32
    return bool(setting == known)


def _shown(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


# --- the report --------------------------------------------------------------------------------------------


def inspect(
    checkpoint: Checkpoint, location: str, size: int, sha256: str, whole: OnnxEngine | None = None
) -> Inspection:
    """All there is to say of a checkpoint that was read, whether or not it is served.

    `location`, `size` (bytes) and `sha256` are the file's; `whole` is the network that brings its own
    weights.
    """
    network: Network | None = None
    outputs, only = (whole.outputs, whole.size) if whole else (None, None)
    notes: list[str] = []
    problem = ""
    # the names that only the notebook knows are to be filled in: that keeps no file from being served
    settings = Settings(model_url=location)
    try:
        check_numbers(checkpoint.arrays)
        if whole is None:
            network = recognize(checkpoint.arrays, module=checkpoint.module)
            head, outputs, only = network.head, network.head.outputs, network.graph.size
            if not checkpoint.known.get("classes"):
                settings = replace(settings, classes=_placeholders(outputs))
            settings, notes = complete(settings, checkpoint, head.generation, outputs, only)
    except ArchitectureUnknown as error:
        problem = str(error) + (REBUILT if checkpoint.export else "")
    except StartupError as error:
        problem = str(error)
    writer = "an exporter to ONNX" if checkpoint.container == "onnx" else "a state dict"
    writer = checkpoint.export.writer if checkpoint.export else writer
    if network and not checkpoint.export:
        writer = f"a state dict of {FORMS[network.head.generation]}"
    fitting = fitting_graphs(checkpoint.arrays)
    report = Inspection(
        container=checkpoint.container,
        writer=writer,
        architecture=" or ".join(graph.architecture for graph in fitting),
        outputs=outputs,
        size=only,
        classes=tuple(checkpoint.known.get("classes", ())),
        transforms={name: _rounded(value) for name, value in checkpoint.known.items() if name != "classes"},
        bytes=size,
        sha256=sha256,
        served=not problem or len(fitting) > 1,  # of several, the one that is chosen is served
        problem=problem,
        notes=tuple(notes),
        settings="",
    )
    return replace(report, settings=_toml(report, location))


def _placeholders(outputs: int) -> tuple[str, ...]:
    return tuple(f"class {number + 1:03}" for number in range(outputs))


def _toml(report: Inspection, location: str) -> str:
    """A settings.toml that serves the file."""
    lines = [f"model_url = {json.dumps(location)}"]
    if report.classes:
        lines.append(f"# classes: the file knows its {len(report.classes)}")
    else:
        names = json.dumps(_placeholders(report.outputs or 2))
        lines.append(f"classes = {names}  # your names, in the order of learn.dls.vocab")
    if " or " in report.architecture:
        first = report.architecture.partition(" ")[0]
        lines.append(f'architecture = "{first}"  # {report.architecture}: the one that you trained')
    if not report.transforms:
        pipeline = "fastai1" if "v1" in report.writer else "resize"
        lines.append(f'pipeline = "{pipeline}"  # the file does not tell: as in your notebook')
        lines.append(f"image_size = {json.dumps(report.size or 224)}  # the same")
    lines.append(f'model_sha256 = "{report.sha256}"')
    return "\n".join(lines) + "\n"


def _served(report: Inspection) -> str:
    if not report.problem:
        return "yes"
    return "once you choose." if report.served else "no."


def as_text(report: Inspection) -> str:
    """The report for people."""
    rows = {
        "container": report.container,
        "written by": report.writer,
        "architecture": report.architecture or "not recognized",
        "outputs": report.outputs,
        "classes": ", ".join(report.classes) or "not in the file",
        **{name.replace("_", " "): _shown(value) for name, value in report.transforms.items()},
        "size": f"{report.bytes:,} bytes",
        "sha256": report.sha256,
        "served": f"{_served(report)} {report.problem}".strip(),
    }
    width = max(map(len, rows))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items() if value is not None)
    notes = "".join(f"\nnote: {note}" for note in report.notes)
    return f"{text}{notes}\n\n# settings.toml\n{report.settings}"

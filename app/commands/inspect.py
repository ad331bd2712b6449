"""`python -m app inspect`: the contents of a checkpoint, and the settings that serve it."""

import argparse
import asyncio
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from app.checkpoints.reader import Checkpoint
from app.errors import ArchitectureUnknown, StartupError, plain
from app.graphs.graph import fitting_graphs
from app.progress import show_progress
from app.serving.recognize import recognize
from app.serving.resolve import resolve, rounded, shown
from app.serving.source import Source, read_source
from app.settings import Settings


class Inspection(Struct, frozen=True):
    """The report of `python -m app inspect`. `problem` is the reason why the file is not served, or "".

    `outputs` is the number of classes, `size` the only (height, width) that the network takes; None if the
    file does not tell. `settings` is a settings.toml that serves the file, with comments on the values to
    fill in.
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


def run(options: argparse.Namespace) -> int:
    """Print the report about `options.file`; return 1 if it cannot be served."""
    try:
        report = inspect(asyncio.run(read_source(options.file, show_progress)), options.file)
    finally:
        show_progress("", None)
    print(json.dumps(msgspec.to_builtins(report)) if options.json else as_text(report))
    return 0 if report.served else 1


def inspect(source: Source, location: str) -> Inspection:
    """Return the report about a checkpoint that was read, whether or not it can be served."""
    checkpoint, network, problem = source.checkpoint, None, ""
    notes, pixels = checkpoint.warnings, dict[str, Any]()
    try:
        network = recognize(checkpoint)
        # the owner will fill in the class names; the report does not need them
        classes = () if checkpoint.known.get("classes") else _placeholders(network.outputs)
        recipe = resolve(Settings(model_url=location, classes=classes), checkpoint, network)
        notes, pixels = recipe.notes, recipe.preprocess.as_settings()
    except ArchitectureUnknown as error:
        problem = str(error) + (checkpoint.export.hint() if checkpoint.export else "")
    except StartupError as error:
        problem = str(error)
    fitting = fitting_graphs(checkpoint.arrays)
    report = Inspection(
        container=checkpoint.container,
        writer=_writer(checkpoint, network.writer if network else ""),
        architecture=" or ".join(graph.architecture for graph in fitting),
        outputs=network.outputs if network else None,
        size=network.size if network else None,
        classes=tuple(checkpoint.known.get("classes") or (network.labels if network else ())),
        transforms={name: rounded(value) for name, value in checkpoint.known.items() if name != "classes"},
        bytes=source.file.path.stat().st_size,
        sha256=source.file.sha256,
        served=not problem or len(fitting) > 1,  # if several fit, the settings choose one
        problem=problem,
        notes=notes,
        settings="",
    )
    return replace(report, settings=_toml(report, location, pixels))


def _writer(checkpoint: Checkpoint, library: str) -> str:
    if checkpoint.export:
        return checkpoint.export.writer
    if checkpoint.container == "onnx":
        return "an exporter to ONNX"
    return f"a state dict of {library}" if library else "a state dict"


def _placeholders(outputs: int) -> tuple[str, ...]:
    return tuple(f"class {number + 1:03}" for number in range(outputs))


def _toml(report: Inspection, location: str, pixels: Mapping[str, Any]) -> str:
    """Return a settings.toml that serves the file."""
    lines = [f"model_url = {json.dumps(location)}"]
    if report.classes:
        lines.append(f"# classes: the file has its {len(report.classes)}")
        if report.classes == ("False", "True"):
            lines.append('#labels = ["no", "yes"]  # names that people read in place of False and True')
    else:
        names = json.dumps(_placeholders(report.outputs or 2))
        lines.append(f"classes = {names}  # your names, in the order of learn.dls.vocab")
    if " or " in report.architecture:
        first = report.architecture.partition(" ")[0]
        lines.append(f'architecture = "{first}"  # {report.architecture}: the one that you trained')
    if not report.transforms:
        lines.append("# how your notebook made pixels of a photo is not in the file: correct this guess")
        lines += [f"{name} = {json.dumps(value)}" for name, value in pixels.items()]
    lines.append(f'model_sha256 = "{report.sha256}"')
    return "\n".join(lines) + "\n"


def _served(report: Inspection) -> str:
    if not report.problem:
        return "yes"
    return "once you choose." if report.served else "no."


def as_text(report: Inspection) -> str:
    """Return the report for people."""
    rows = {
        "container": report.container,
        "written by": report.writer,
        "architecture": report.architecture or "not recognized",
        "outputs": report.outputs,
        "classes": ", ".join(map(plain, report.classes)) or "not in the file",
        **{name.replace("_", " "): plain(shown(value)) for name, value in report.transforms.items()},
        "size": f"{report.bytes:,} bytes",
        "sha256": report.sha256,
        "served": f"{_served(report)} {report.problem}".strip(),
    }
    width = max(map(len, rows))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items() if value is not None)
    notes = "".join(f"\nnote: {plain(note, 2000)}" for note in report.notes)
    return f"{text}{notes}\n\n# settings.toml\n{report.settings}"

"""Graphs that are not shipped: exported once, where torch and fastai are installed, and kept."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from app.checkpoints.learner_export import Export
from app.errors import ArchitectureUnknown, SettingsError
from app.graphs.graph import Graph, Shown, channels_of, read_graph, shipped_names
from app.photos.notebook import read_texts
from app.photos.transforms import USUAL_SIZE, Preprocess
from app.progress import Report
from app.types import Arrays, Size


def cached_graph(
    name: str,
    folder: Path,
    arrays: Arrays,
    export: Export | None,
    report: Report,
    error: ArchitectureUnknown,
) -> Graph:
    """Return the graph `name` in `folder`, exported now if it is not there yet.

    With an `export` the network in it is rebuilt, else `name` is an architecture. Raises `error` if there is
    no such graph, or if it does not fit the arrays.
    """
    if name in shipped_names() or not re.fullmatch(r"[\w.-]+", name):  # it becomes a file name
        raise error
    if export and not export.rebuildable:
        raise error
    path = folder / f"{name}.json"
    if not path.exists():
        if importlib.util.find_spec("fastai") is None:
            hint = export.hint() if export else ""
            raise ArchitectureUnknown(f"{error}{hint}") from error
        from app.graphs.export import export_graph, export_module  # torch and fastai: only when needed

        report("exporting the graph", None)
        if export:
            export_module(
                export.module, arrays, name, folder, Shown(channels_of(arrays), _shown_size(export.known))
            )
        else:
            export_graph(name, folder)
    graph = read_graph(path)
    if not graph.fits(arrays):
        raise error
    return graph


def _shown_size(known: Mapping[str, str]) -> Size | None:
    """Return the (height, width) that an export's own transforms show the network; None where it varies.

    224 by 224 where it has none, or none that are understood.
    """
    if not any(known.get(name) for name in ("item_tfms", "batch_tfms", "ds_tfms")):
        return USUAL_SIZE
    try:
        return Preprocess(read_texts(known, {})[0]).size
    except SettingsError:
        return USUAL_SIZE

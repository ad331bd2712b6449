"""Graphs that are not shipped: exported once, where torch and fastai are installed, and kept."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    size: Size | None,
    report: Report,
    error: ArchitectureUnknown,
) -> Graph:
    """Return the graph `name` in `folder`, exported now if it is not there yet.

    With an `export` the network in it is rebuilt for pictures of `size`, None for any; else `name` is an
    architecture. Raises `error` if there is no such graph, or if it does not fit the arrays.
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
            export_module(export.module, arrays, name, folder, Shown(channels_of(arrays), size))
        else:
            export_graph(name, folder)
    graph = read_graph(path)
    if not graph.fits(arrays):
        raise error
    return graph


def shown_size(known: Mapping[str, Any]) -> Size | None:
    """Return the (height, width) that transforms show the network; None where it varies.

    `known` has settings by name, of an export or of the owner; `image_size` decides alone. It is 224 by 224
    where there are no transforms, or none that are understood.
    """
    if "image_size" in known:
        height, width = known["image_size"]
        return height, width
    if not any(known.get(name) for name in ("item_tfms", "batch_tfms", "ds_tfms", "transforms")):
        return USUAL_SIZE
    try:
        return Preprocess(read_texts(known, {})[0]).size
    except SettingsError:
        return USUAL_SIZE

"""The network of a checkpoint: recognized, or rebuilt by torch if no shipped graph fits."""

import os
from pathlib import Path
from typing import Final

from app.engines.contract import fitted
from app.errors import ArchitectureUnknown
from app.fetching.download import temporary_folder
from app.graphs.cache import cached_graph, shown_size
from app.progress import Report
from app.serving.recognize import AnyNetwork, recognize
from app.serving.source import Source
from app.settings import MODELS, Settings

SIZING: Final = ("image_size", "item_tfms", "batch_tfms", "ds_tfms", "transforms")  # settings


def find_network(source: Source, settings: Settings, report: Report) -> AnyNetwork:
    """Return the network of the checkpoint. Raises ArchitectureUnknown, CheckpointError."""
    checkpoint, export = source.checkpoint, source.checkpoint.export
    try:
        return recognize(checkpoint, settings.architecture, settings.head_activation)
    except ArchitectureUnknown as error:
        name, size = settings.architecture, None
        if export:
            said = {each: getattr(settings, each) for each in SIZING if settings.is_set(each)}
            size = shown_size({**export.known, **said})
            name = f"export-{source.file.sha256[:16]}" + ("-{}x{}".format(*size) if said and size else "")
        graph = cached_graph(name, _cache_folder(name), checkpoint.arrays, export, size, report, error)
        return fitted(graph, checkpoint.arrays)


def _cache_folder(name: str) -> Path:
    """Return the folder for the graph: one for temporary files if models/ is read-only."""
    here = os.access(MODELS, os.W_OK) or (MODELS / f"{name}.json").exists()
    return MODELS if here else temporary_folder()

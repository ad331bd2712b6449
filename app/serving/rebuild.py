"""The network of a checkpoint: recognized, or rebuilt by torch if no shipped graph fits."""

import os
from pathlib import Path

from app.engines.contract import fitted
from app.errors import ArchitectureUnknown
from app.fetching.download import temporary_folder
from app.graphs.cache import cached_graph
from app.progress import Report
from app.serving.recognize import AnyNetwork, recognize
from app.serving.source import Source
from app.settings import MODELS


def find_network(source: Source, architecture: str, activation: str, report: Report) -> AnyNetwork:
    """Return the network of the checkpoint. Raises ArchitectureUnknown, CheckpointError."""
    checkpoint = source.checkpoint
    try:
        return recognize(checkpoint, architecture, activation)
    except ArchitectureUnknown as error:
        name = f"export-{source.file.sha256[:16]}" if checkpoint.export else architecture
        graph = cached_graph(name, _cache_folder(name), checkpoint.arrays, checkpoint.export, report, error)
        return fitted(graph, checkpoint.arrays)


def _cache_folder(name: str) -> Path:
    """Return the folder for the graph: one for temporary files if models/ is read-only."""
    here = os.access(MODELS, os.W_OK) or (MODELS / f"{name}.json").exists()
    return MODELS if here else temporary_folder()

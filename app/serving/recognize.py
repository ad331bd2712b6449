"""Recognizing: the network in a checkpoint, by its module tree and the names and shapes of its tensors."""

import numpy as np

from app.checkpoints.module_tree import kinds, layers_in
from app.checkpoints.reader import Checkpoint
from app.checkpoints.task import check_task, network_of_transformers
from app.engines.contract import Network, fitted
from app.engines.onnx_trial import OnnxNetwork, open_network
from app.errors import ArchitectureUnknown, CheckpointError
from app.graphs.graph import Graph, channels_of, find_graph, fitting_graphs, with_color
from app.types import Arrays

AnyNetwork = Network | OnnxNetwork


def recognize(checkpoint: Checkpoint, architecture: str = "", activation: str = "auto") -> AnyNetwork:
    """Return the network that a checkpoint's arrays are the weights of.

    `architecture` chooses where several fit, `activation` is the one between the layers of the head. Raises
    NotAClassifier, ArchitectureUnknown, CheckpointError.
    """
    check_numbers(checkpoint.arrays)
    if checkpoint.container == "onnx":
        return open_network(checkpoint.path, checkpoint.data_files)
    module, names = checkpoint.module, checkpoint.names
    shapes = {names.get(name, name): array.shape for name, array in checkpoint.arrays.items()}
    check_task(shapes, kinds(module) if module else ())
    arrays, channels = with_color(checkpoint.arrays), channels_of(checkpoint.arrays)
    graph = _find(checkpoint, arrays, architecture)
    if module is None:
        return fitted(graph, arrays, channels, activation=activation)
    try:
        return fitted(graph, arrays, channels, module, activation)
    except CheckpointError as error:  # an unknown head, but its modules are in the file
        raise ArchitectureUnknown(str(error)) from error


def _find(checkpoint: Checkpoint, arrays: Arrays, architecture: str) -> Graph:
    """Return the graph that fits. Raises ArchitectureUnknown, CheckpointError."""
    layers = layers_in(checkpoint.module) if checkpoint.module else None
    if checkpoint.family:
        fitting = [graph.architecture for graph in fitting_graphs(arrays, layers)]
        architecture = next((each for each in fitting if each.startswith(checkpoint.family)), architecture)
    try:
        return find_graph(arrays, architecture, layers)
    except ArchitectureUnknown as error:
        if other := network_of_transformers([checkpoint.names.get(name, name) for name in arrays]):
            raise other from error
        raise


def check_numbers(arrays: Arrays) -> None:
    """Raise CheckpointError if a weight is NaN or infinite."""
    for name, array in arrays.items():
        with np.errstate(over="ignore", invalid="ignore"):
            total = array.sum()  # finite only if all are, and a third of the time
        if not (np.isfinite(total) or np.isfinite(array).all()):
            raise CheckpointError(
                f"The checkpoint holds NaN or infinite weights (in {name}): the training diverged. Save a "
                "checkpoint from before it did."
            )

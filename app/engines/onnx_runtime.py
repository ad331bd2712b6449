"""Pixels to probabilities in ONNX Runtime: a body and its head in one session, weights bound from memory.

Knows nothing of files, photos or requests.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from app.cpus import usable_cores
from app.engines.contract import Network, Output, Prepare, Run, same_sized
from app.engines.head_graph import FEATURES, POOLED, SCORES, head_graph
from app.engines.int8 import quantize
from app.engines.sessions import Sessions, bound_session
from app.photos.transforms import Preprocess
from app.types import Arrays, Float32


class GraphEngine:
    """The graphs of a body and a head in one session, with the weights of a checkpoint.

    Several threads may call it at once.
    """

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    exact = False
    callers = usable_cores()

    def __init__(
        self, network: Network, multi_label: bool = False, quantized_weights: Arrays | None = None
    ) -> None:
        """Bind the weights to the graph; `quantized_weights` are those of its int8 companion instead."""
        graph = network.graph
        body = graph.float32(network.arrays) if quantized_weights is None else quantized_weights
        companion = graph.int8 if quantized_weights is not None else None
        path = companion.path if companion else graph.path
        continuation, head = head_graph(network.head, multi_label)
        self._weights = {**body, **head}  # the session refers to them and does not own them
        make = partial(bound_session, path.read_bytes() + continuation, self._weights)
        self._sessions = Sessions(make, usable_cores())
        self._channels = int(self._sessions.wide.get_inputs()[0].shape[1])
        self._network = network
        self._multi_label = multi_label

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions that answer photos through this pipeline."""
        return preprocess, self.run

    def run(self, pixels: Sequence[Float32]) -> list[Output]:
        """Answer N arrays (C, H, W) float32, each as it would be answered alone."""
        return [
            output
            for batch in same_sized(pixels)
            for output in map(Output, *self._compute([SCORES, POOLED], batch))
        ]

    def predict_with_features(self, pixels: Float32) -> tuple[Output, Float32]:
        """Answer one (3, H, W) array; with its feature map, (C, h, w)."""
        probabilities, pooled, features = self._compute([SCORES, POOLED, FEATURES], [pixels])
        return Output(probabilities[0], pooled[0]), features[0]

    def quantized(self, pixels: Iterable[Float32]) -> "GraphEngine":
        """Return the same engine in int8, calibrated on photos, (3, H, W) float32 each.

        Raises Int8Unavailable where the graph has no companion in int8.
        """
        weights = quantize(self._network.graph, self._network.arrays, pixels)
        return GraphEngine(self._network, self._multi_label, weights)

    def _compute(self, names: Sequence[str], pixels: Sequence[Float32]) -> list[Float32]:
        batch = pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels)  # stack copies
        if batch.shape[1] < self._channels:  # gray: the weights of the other two are zero
            batch = np.repeat(batch, self._channels, axis=1)
        return self._sessions.run(names, {"pixels": batch})


def load(network: Network, classes: Sequence[str], multi_label: bool) -> GraphEngine:
    """Return the engine of a recognized network."""
    return GraphEngine(network, multi_label)

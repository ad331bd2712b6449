"""Pixels to probabilities: the body in ONNX Runtime, its weights bound from memory, then the numpy head.

Knows nothing of files, photos or requests.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from app.cpus import usable_cores
from app.engines.contract import Network, Output, Prepare, Run, same_sized
from app.engines.head import sigmoid, softmax
from app.engines.int8 import quantize
from app.engines.sessions import bound_session
from app.errors import Int8Unavailable
from app.photos.transforms import Preprocess
from app.types import Arrays, Float32


class GraphEngine:
    """A graph with the weights of a checkpoint. One call uses all cores."""

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    exact = False
    callers = usable_cores()

    def __init__(
        self, network: Network, multi_label: bool = False, quantized_weights: Arrays | None = None
    ) -> None:
        """Bind the weights to the graph; `quantized_weights` are those of its int8 companion instead."""
        graph = network.graph
        # the session refers to the weights and does not own them
        self._weights = graph.float32(network.arrays) if quantized_weights is None else quantized_weights
        companion = graph.int8 if quantized_weights is not None else None
        self._session = bound_session(companion.path if companion else graph.path, self._weights)
        self._channels = int(self._session.get_inputs()[0].shape[1])
        self._network = network
        self._multi_label = multi_label
        self._activation = sigmoid if multi_label else softmax

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions that answer photos through this pipeline."""
        return preprocess, self.run

    def run(self, pixels: Sequence[Float32]) -> list[Output]:
        """Answer N arrays (C, H, W) float32, each as it would be answered alone."""
        batches = same_sized(pixels)
        return [output for batch in batches for output in self._outputs(self._features(batch))]

    def predict_with_features(self, pixels: Float32) -> tuple[Output, Float32]:
        """Answer one (3, H, W) array; with its feature map, (C, h, w)."""
        features = self._features([pixels])
        return self._outputs(features)[0], features[0]

    def quantized(self, pixels: Iterable[Float32]) -> "GraphEngine":
        """Return the same engine in int8, calibrated on photos, (3, H, W) float32 each.

        Raises Int8Unavailable where the graph has no companion in int8.
        """
        graph = self._network.graph
        if graph.int8 is None:
            raise Int8Unavailable(f"{graph.architecture} has no graph in int8")
        weights = quantize(graph, graph.int8, self._network.arrays, pixels)
        return GraphEngine(self._network, self._multi_label, weights)

    def _features(self, pixels: Sequence[Float32]) -> Float32:
        stacked = np.stack(pixels)
        if stacked.shape[1] < self._channels:  # gray: the weights of the other two are zero
            stacked = np.repeat(stacked, self._channels, axis=1)
        (features,) = self._session.run(["features"], {"pixels": stacked})
        return features  # type: ignore[no-any-return]

    def _outputs(self, features: Float32) -> list[Output]:
        head = self._network.head
        with np.errstate(all="ignore"):  # an overflow makes the output infinite, which is checked later
            pooled = head.pooled(features)
            probabilities = self._activation(head.logits(pooled))
        return [Output(*both) for both in zip(probabilities, pooled, strict=True)]


def load(network: Network, classes: Sequence[str], multi_label: bool) -> GraphEngine:
    """Return the engine of a recognized network."""
    return GraphEngine(network, multi_label)

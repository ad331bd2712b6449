"""Pixels to probabilities: the body in ONNX Runtime, its weights bound from memory, then the numpy head.

Knows nothing of files, photos or requests.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.cores import usable_cores
from app.graphs import Graph
from app.head import Head, sigmoid, softmax

# From 1.29 on, ONNX Runtime's own builds for Linux tell Microsoft of every model that is opened, unless this
# is set before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a network says of one photo: `probabilities` (classes,), out of `features`, the pooled feature
    map.
    """

    probabilities: Float32
    features: Float32


class Engine:
    """A network ready to compute. Not for several threads at once: it uses all cores by itself."""

    def __init__(
        self, graph: Graph, arrays: Mapping[str, npt.NDArray[Any]], head: Head, multi_label: bool = False
    ) -> None:
        """Bind `arrays` (by state-dict names) to the graph and make the session: one thread a core."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.inter_op_num_threads = 1
        # Waiting threads sleep: spinning burns a shared core for a gain that is only there on an idle
        # machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The session refers to these arrays and does not own them. Aligned float32 in the machine's order;
        # arrays that are so already are bound without a copy.
        self._weights = [np.require(arrays[name], np.float32, ["C", "ALIGNED"]) for name in graph.weights]
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights]
        options.add_external_initializers(list(graph.weights), values)
        self._session = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
        self._head = head
        self._activation = sigmoid if multi_label else softmax

    def run(self, pixels: Sequence[Float32]) -> list[Answer]:
        """N arrays (3, H, W) float32 of one size -> N answers, each computed as it would be alone."""
        return self._answers(self._features(pixels))

    def look(self, pixels: Float32) -> tuple[Answer, Float32]:
        """One (3, H, W) array -> its answer, and the feature map (C, h, w) behind it."""
        features = self._features([pixels])
        return self._answers(features)[0], features[0]

    def _features(self, pixels: Sequence[Float32]) -> Float32:
        (features,) = self._session.run(["features"], {"pixels": np.stack(pixels)})
        return features  # type: ignore[no-any-return]

    def _answers(self, features: Float32) -> list[Answer]:
        with np.errstate(all="ignore"):  # what overflows is not finite in the answer, where it is looked for
            pooled = self._head.pooled(features)
            probabilities = self._activation(self._head.logits(pooled))
        return [Answer(*both) for both in zip(probabilities, pooled, strict=True)]

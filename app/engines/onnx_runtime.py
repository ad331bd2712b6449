"""Pixels to probabilities: the body in ONNX Runtime, its weights bound from memory, then the numpy head.

Knows nothing of files, photos or requests.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.cpus import usable_cores
from app.engines.contract import Output
from app.engines.head import Head, sigmoid, softmax
from app.errors import CheckpointError
from app.types import Arrays, Float32

# From 1.29 on, ONNX Runtime's own builds for Linux tell Microsoft of every model that is opened, unless this
# is set before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort


class OnnxEngine:
    """A whole network from an ONNX file with its own weights, which answers logits or probabilities.

    Not for several threads at once. `outputs` is the number of classes, `size` the (height, width) it takes,
    None where it takes any.
    """

    def __init__(self, path: Path, multi_label: bool = False) -> None:
        """Load the file, which must hold all of itself. Raises CheckpointError where it is no image
        classifier.
        """
        try:
            # from bytes: from a path ONNX Runtime would open the other files that an ONNX file may name
            self._session = ort.InferenceSession(
                path.read_bytes(), _options(), providers=["CPUExecutionProvider"]
            )
            inputs = self._session.get_inputs()
            sides = [side if isinstance(side, int) else None for side in inputs[0].shape]
            fits = (
                len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(sides) == 4 and sides[1] == 3
            )
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise CheckpointError(
                f"ONNX Runtime cannot load the file: {' '.join(str(error).split())[:300]}. Export it again, "
                "in one file, for ONNX Runtime on a CPU."
            ) from error
        if not fits:
            raise CheckpointError(
                f"The ONNX file takes {', '.join(f'{i.name} {i.type} {i.shape}' for i in inputs)}; one "
                "float32 input (N, 3, height, width) was expected."
            )
        self._input, self._one_by_one = inputs[0].name, sides[0] == 1
        self.size = (sides[2], sides[3]) if sides[2] and sides[3] else None
        height, width = self.size or (224, 224)
        noise = np.random.default_rng(0).standard_normal((3, height, width), np.float32)
        try:
            probe = np.asarray(self._scores([np.zeros_like(noise), noise]), np.float32)
        except Exception as error:  # the same
            raise CheckpointError(
                f"ONNX Runtime cannot run the file on two pictures of {height} x {width} px: "
                f"{' '.join(str(error).split())[:300]}. Export it with a dynamic batch, or for one picture."
            ) from error
        if probe.ndim != 2:
            raise CheckpointError(
                f"The ONNX file answers with the shape {list(probe.shape)}; (N, classes) was expected."
            )
        self.outputs = probe.shape[1]
        within = bool((probe >= 0).all() and (probe <= 1).all())
        done = within and (multi_label or bool(np.allclose(probe.sum(axis=1), 1, atol=1e-3)))
        self._activation = (lambda x: x) if done else sigmoid if multi_label else softmax

    def run(self, pixels: Sequence[Float32]) -> list[Output]:
        """N arrays (3, H, W) float32 of one size -> N answers; `features` are the network's own outputs."""
        scores = self._scores(pixels)
        with np.errstate(all="ignore"):  # what overflows is not finite in the answer, where it is looked for
            probabilities = self._activation(scores)
        return [Output(*both) for both in zip(probabilities, scores, strict=True)]

    def _scores(self, pixels: Sequence[Float32]) -> Float32:
        batches = [p[np.newaxis] for p in pixels] if self._one_by_one else [np.stack(pixels)]
        return np.concatenate([self._session.run(None, {self._input: batch})[0] for batch in batches])


class Engine:
    """A network ready to compute. Not for several threads at once: it uses all cores by itself."""

    def __init__(self, path: Path, weights: Arrays, head: Head, multi_label: bool = False) -> None:
        """Bind `weights` to the weightless graph at `path`, in whose types they are: one thread a core."""
        self._weights = weights  # the session refers to them and does not own them
        self._session = bound_session(path, weights)
        self._head = head
        self._activation = sigmoid if multi_label else softmax

    def run(self, pixels: Sequence[Float32]) -> list[Output]:
        """N arrays (3, H, W) float32 of one size -> N answers, each computed as it would be alone."""
        return self._answers(self._features(pixels))

    def predict_with_features(self, pixels: Float32) -> tuple[Output, Float32]:
        """One (3, H, W) array -> its answer, and the feature map (C, h, w) behind it."""
        features = self._features([pixels])
        return self._answers(features)[0], features[0]

    def _features(self, pixels: Sequence[Float32]) -> Float32:
        (features,) = self._session.run(["features"], {"pixels": np.stack(pixels)})
        return features  # type: ignore[no-any-return]

    def _answers(self, features: Float32) -> list[Output]:
        with np.errstate(all="ignore"):  # what overflows is not finite in the answer, where it is looked for
            pooled = self._head.pooled(features)
            probabilities = self._activation(self._head.logits(pooled))
        return [Output(*both) for both in zip(probabilities, pooled, strict=True)]


def bound_session(path: Path, weights: Arrays, *, small: bool = False) -> ort.InferenceSession:
    """A session of a weightless graph that refers to `weights`, which are to be kept for as long.

    ONNX Runtime lays the weights of convolutions out anew for speed; `small` spares those copies of them.
    """
    options = _options()
    if small:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    # Waiting threads sleep: spinning burns a shared core for a gain that is only there on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options

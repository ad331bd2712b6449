"""A whole network from an ONNX file with its own weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from app.cpus import usable_cores
from app.engines.contract import Output, Prepare, Run, same_sized
from app.engines.head import sigmoid, softmax
from app.engines.sessions import file_session
from app.errors import CheckpointError, Int8Unavailable
from app.photos.transforms import Preprocess
from app.types import Float32


class WholeNetwork:
    """An image classifier in an ONNX file, which answers logits or probabilities.

    `outputs` is the number of classes, `size` the (height, width) it takes, None where it takes any.
    """

    architecture = "ONNX"
    binary = False
    generation = 0
    channels = 3
    writer = "an exporter to ONNX"

    def __init__(self, path: Path) -> None:
        """Load the file, which must be complete. Raises CheckpointError unless it is an image classifier."""
        try:
            self._session = file_session(path)
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
        self._probe = self._probed(*(self.size or (224, 224)))
        self.outputs = self._probe.shape[1]

    def _probed(self, height: int, width: int) -> Float32:
        """Return the scores of a black and a noisy picture."""
        noise = np.random.default_rng(0).standard_normal((3, height, width), np.float32)
        try:
            probe = np.asarray(self.scores([np.zeros_like(noise), noise]), np.float32)
        except Exception as error:  # the same
            raise CheckpointError(
                f"ONNX Runtime cannot run the file on two pictures of {height} x {width} px: "
                f"{' '.join(str(error).split())[:300]}. Export it with a dynamic batch, or for one picture."
            ) from error
        if probe.ndim != 2:
            raise CheckpointError(
                f"The ONNX file answers with the shape {list(probe.shape)}; (N, classes) was expected."
            )
        return probe

    def answers_probabilities(self, multi_label: bool) -> bool:
        """Tell whether the scores are probabilities already, judged by two pictures."""
        within = bool((self._probe >= 0).all() and (self._probe <= 1).all())
        return within and (multi_label or bool(np.allclose(self._probe.sum(axis=1), 1, atol=1e-3)))

    def scores(self, pixels: Sequence[Float32]) -> Float32:
        """Return the (N, classes) outputs for N arrays (3, H, W) float32."""
        one_by_one = (p[np.newaxis] for p in pixels)
        batches = one_by_one if self._one_by_one else map(np.stack, same_sized(pixels))
        return np.concatenate([self._session.run(None, {self._input: batch})[0] for batch in batches])


class OnnxFileEngine:
    """The engine of a whole network."""

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    exact = False
    callers = usable_cores()
    predict_with_features = None  # its feature maps have no names

    def __init__(self, network: WholeNetwork, multi_label: bool = False) -> None:
        self._network = network
        probabilities = network.answers_probabilities(multi_label)
        self._activation = (lambda x: x) if probabilities else sigmoid if multi_label else softmax

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions that answer photos through this pipeline."""
        return preprocess, self.run

    def run(self, pixels: Sequence[Float32]) -> list[Output]:
        """Answer N arrays (3, H, W) float32 of one size; `features` are the network's own outputs."""
        scores = self._network.scores(pixels)
        with np.errstate(all="ignore"):  # an overflow makes the output infinite, which is checked later
            probabilities = self._activation(scores)
        return [Output(*both) for both in zip(probabilities, scores, strict=True)]

    def quantized(self, pixels: Iterable[Float32]) -> "OnnxFileEngine":
        """Raise Int8Unavailable."""
        raise Int8Unavailable("ONNX has no graph in int8")

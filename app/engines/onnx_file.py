"""A whole network from an ONNX file with its own weights."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.checkpoints.labels import Labels, read_labels
from app.cpus import usable_cores
from app.engines.contract import Output, Prepare, Run, same_sized
from app.engines.head import sigmoid, softmax
from app.errors import CheckpointError, Int8Unavailable, plain
from app.photos.transforms import Preprocess
from app.types import Float32, Size

if TYPE_CHECKING:
    import onnxruntime as ort

TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
NAMES: Final = ("names", "classes", "class_names", "labels", "id2label")  # of class names in the metadata
MAX_SIDE: Final = 1024  # px of a picture: as the setting image_size
MAX_NAMES: Final = 1_000_000  # characters


def _labels(metadata: Mapping[str, str]) -> Labels:
    """Return the class names in the metadata, as ultralytics writes them ({0: 'cat'}) or as JSON."""
    text = next((metadata[name] for name in NAMES if name in metadata), "")[:MAX_NAMES]
    if numbered := re.findall(r"""["']?(\d+)["']?: *(["'])(.*?)\2""", text):
        return read_labels({number: name for number, _, name in numbered})
    return read_labels([name for _, name in re.findall(r"""(["'])(.*?)\1""", text)])


def _size(text: str) -> Size | None:
    """Return the (height, width) that ultralytics writes as "[224, 224]"; None for any other text."""
    sides = re.fullmatch(r"\[(\d{2,4}), (\d{2,4})\]", text)
    return (int(sides[1]), int(sides[2])) if sides else None


class WholeNetwork:
    """An image classifier in an ONNX file, which answers logits or probabilities.

    `outputs` is the number of classes, `binary` tells whether one output stands for two of them, `labels` are
    their names in the metadata. `size` is the (height, width) it takes, None where it takes any. `writer` is
    the library that trained it, where the metadata tell.
    """

    architecture = "ONNX"
    generation = 0
    channels = 3
    known: Mapping[str, Any] = {}

    def __init__(self, session: "ort.InferenceSession") -> None:
        """Answer two pictures. Raises CheckpointError unless it is an image classifier."""
        self._session = session
        inputs = session.get_inputs()
        sides = [side if isinstance(side, int) else None for side in inputs[0].shape] if inputs else []
        if not (len(inputs) == 1 and inputs[0].type in TYPES and len(sides) == 4 and 3 in sides[1::2]):
            raise CheckpointError(
                f"The ONNX file takes {', '.join(f'{i.name} {i.type} {i.shape}' for i in inputs)}; one "
                "float32 or float16 input (N, 3, height, width) or (N, height, width, 3) was expected."
            )
        self._input, self._one_by_one = inputs[0].name, sides[0] == 1
        self._type, self._last = TYPES[inputs[0].type], sides[1] != 3  # TensorFlow's channels come last
        height, width = sides[1:3] if self._last else sides[2:]
        if max(height or 0, width or 0) > MAX_SIDE:
            raise CheckpointError(
                f"The ONNX file takes pictures of {height} x {width} px; at most {MAX_SIDE} px a side are "
                "served. Export it for smaller ones."
            )
        self.size = (height, width) if height and width else None
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.labels = _labels(metadata)
        self.writer = "an exporter to ONNX"
        if metadata.get("author") == "Ultralytics":
            self.writer, self.size = "ultralytics", self.size or _size(metadata.get("imgsz", ""))
        self.binary = self._probability = False
        self._probe = self._probed(*(self.size or (224, 224)))
        if self._probe.shape[1] == 1:
            height, width = self.size or (224, 224)
            levels = [np.full((3, height, width), level, np.float32) for level in (-3, -1.5, 1.5, 3)]
            wide = np.concatenate([self._probe, self.scores(levels)])  # logits of such are hardly in 0..1
            self.binary, self._probability = True, bool((wide >= 0).all() and (wide <= 1).all())
            self._probe = self._both(self._probe)
        self.outputs = self._probe.shape[1]

    def _probed(self, height: int, width: int) -> Float32:
        """Return the scores of a black and a noisy picture."""
        noise = np.random.default_rng(0).standard_normal((3, height, width), np.float32)
        try:
            probe = np.asarray(self.scores([np.zeros_like(noise), noise]), np.float32)
        except Exception as error:  # the same
            raise CheckpointError(
                f"ONNX Runtime cannot run the file on two pictures of {height} x {width} px: "
                f"{plain(error)}. Export it with a dynamic batch, or for one picture."
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
        scores = np.concatenate([self._answer(batch) for batch in batches]).astype(np.float32)
        return self._both(scores) if self.binary else scores

    def _answer(self, batch: Float32) -> Float32:
        """Compute a (N, 3, H, W) batch in the layout and type of the network."""
        placed = np.moveaxis(batch, 1, -1) if self._last else batch
        return self._session.run(None, {self._input: np.ascontiguousarray(placed, self._type)})[0]  # type: ignore[no-any-return]

    def _both(self, scores: Float32) -> Float32:
        """Return scores of two classes for one output: of its probability, or of its logit beside 0."""
        first = 1 - scores if self._probability else np.zeros_like(scores)
        return np.concatenate([first, scores], axis=1)


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

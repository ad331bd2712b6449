"""A model that takes the pixels of a photo: an ONNX file that `python -m app export` wrote.

Its preprocessing is inside. The settings that describe it are in its metadata.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Struct
from PIL import Image

from app.cpus import usable_cores
from app.engines.contract import Output, Prepare, Run
from app.errors import CheckpointError, Int8Unavailable, plain
from app.photos.transforms import USUAL_SIZE, Preprocess
from app.types import Array

if TYPE_CHECKING:
    import onnxruntime as ort

IMAGE, PROBABILITIES, CLASSES = "image", "probabilities", "classes"  # its input and outputs
SETTINGS: Final = "settings"  # of its metadata
MAX_SETTINGS: Final = 1_000_000  # characters


class Inside(Struct, frozen=True, omit_defaults=True):
    """The settings that a model holds; each field is the setting of that name."""

    exif: Literal["turn", "ignore"] = "turn"
    multi_label: bool = False
    threshold: float = 0.5
    unsure_below: float = 0.0
    gray: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    item_tfms: str = ""
    batch_tfms: str = ""
    ds_tfms: str = ""
    transforms: str = ""


def takes_photos(session: "ort.InferenceSession") -> bool:
    """Tell whether a model has the input and the outputs of an export."""
    found = [(each.name, each.type, len(each.shape)) for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]
    return found == [(IMAGE, "tensor(uint8)", 3)] and outputs == [PROBABILITIES, CLASSES]


class PhotoNetwork:
    """An exported image classifier, from the pixels of a photo to probabilities."""

    architecture = "ONNX"
    generation = 0
    channels = 3
    binary = False
    size = None
    writer = "an export"

    def __init__(self, session: "ort.InferenceSession") -> None:
        """Answer a black picture. Raises CheckpointError if that fails, or if the metadata is not valid."""
        self._session = session
        text = session.get_modelmeta().custom_metadata_map.get(SETTINGS, "{}")[:MAX_SETTINGS]
        try:
            inside = msgspec.json.decode(text, type=Inside)
            probabilities, classes = session.run(None, {IMAGE: np.zeros((*USUAL_SIZE, 3), np.uint8)})
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise CheckpointError(
                f"The exported model does not answer a black picture: {plain(error)}. Export it again."
            ) from error
        self.labels: tuple[str, ...] = tuple(map(str, classes))
        self.outputs = len(probabilities)
        self.known: dict[str, Any] = {
            k: v for k, v in msgspec.structs.asdict(inside).items() if v not in ("", ())
        }

    def probabilities(self, image: Array) -> Array:
        """Return (classes,) float32 for (height, width, 3) uint8."""
        return self._session.run([PROBABILITIES], {IMAGE: image})[0]  # type: ignore[no-any-return]


class PhotoEngine:
    """The engine of an exported model."""

    name = "onnxruntime"
    packages = ("onnxruntime", "numpy")
    exact = True
    callers = usable_cores()
    predict_with_features = None

    def __init__(self, network: PhotoNetwork) -> None:
        self._network = network

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions that answer photos; of the pipeline only its bounds are needed."""

        def prepare(image: Image.Image) -> Array:
            preprocess.check_sizes(image)
            return np.asarray(image)

        return prepare, self.run

    def run(self, images: Sequence[Array]) -> list[Output]:
        """Answer N arrays (height, width, 3) uint8; `features` are the probabilities."""
        answers = [self._network.probabilities(image) for image in images]
        return [Output(each, each) for each in answers]

    def quantized(self, pixels: Iterable[Array]) -> "PhotoEngine":
        """Raise Int8Unavailable."""
        raise Int8Unavailable("an exported model has no graph in int8")

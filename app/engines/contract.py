"""What every engine offers: how a photo becomes its input, and how inputs become outputs."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from PIL import Image

from app.photos.transforms import Preprocess
from app.types import Float32


class Output(Struct, frozen=True):
    """What a network says of one photo.

    `probabilities` is (classes,) float32; `features` is the pooled feature map they are computed from.
    """

    probabilities: Float32
    features: Float32


Prepare = Callable[[Image.Image], Any]  # a decoded photo -> the input of `Run`
Run = Callable[[Sequence[Any]], list[Output]]  # N inputs -> N outputs
Answerer = Callable[[Preprocess], tuple[Prepare, Run]]  # an engine behind a pipeline

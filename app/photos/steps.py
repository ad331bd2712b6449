"""The transforms of a notebook at prediction: one small step each.

A step on the picture takes and gives a Pillow image. A step on the pixels takes a Pillow image or (C, H, W)
float32 in 0..1, and gives the latter. `fastai_steps`, `fastai1_steps` and `torchvision_steps` hold those of
the three libraries.
"""

from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import fields
from PIL import Image

from app.photos.resample import FILTERS, Resized
from app.types import Float32, Size

ResizeMethod = Literal["crop", "squish", "pad"]
Region = tuple[float, float, float, float]  # left, top, width and height as shares of the picture
Shown = tuple[Region, Size]

WHOLE: Final[Region] = (0.0, 0.0, 1.0, 1.0)


class Step(Struct, frozen=True, tag_field="name"):
    """One transform at validation. Its fields are its arguments; sizes are (height, width)."""

    def shown(self, size: Size) -> Shown:
        """Of a picture of `size`: the part that is used, and the size that is made of it."""
        raise NotImplementedError

    @property
    def least(self) -> Size | None:
        """The (height, width) beyond which a picture's detail is averaged away; None where it matters."""
        return None

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Return its name in the library, and the arguments that differ from the library's defaults."""
        arguments = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.required
        }
        if "resample" in arguments:
            arguments["resamples"] = (FILTERS.index(arguments.pop("resample")), 0)
        return str(self.__struct_config__.tag), arguments

    def __str__(self) -> str:
        """The call as a notebook has it."""
        name, arguments = self.call
        first = next(iter(arguments), "")
        written = (
            as_text(value) if key == first == "size" else f"{key}={value!r}"
            for key, value in arguments.items()
        )
        return f"{name}({', '.join(written)})"


def as_text(value: Any) -> str:
    """A value as Python has it; two equal sides are one."""
    square = isinstance(value, tuple) and isinstance(value[0], int) and len(set(value)) == 1
    return repr(value[0] if square else value)


class PictureStep(Step, frozen=True):
    """A step on the picture."""

    @property
    def ordered(self) -> bool:
        """Whether the order of Pillow's two passes may change the result; see `resample.resize`."""
        return True

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """The step done; `resized` is Pillow's resize. Raises BadImage."""
        raise NotImplementedError


class PixelStep(Step, frozen=True):
    """A step on the pixels."""

    def __call__(self, image: Image.Image | Float32) -> Float32:
        """The step done: (C, H, W) float32 in 0..1. Raises BadImage."""
        raise NotImplementedError


def as_numbers(image: Image.Image | Float32) -> tuple[Float32, np.float32]:
    """(H, W, C) numbers, and the divisor that brings them to 0..1."""
    if isinstance(image, np.ndarray):
        return image.transpose(1, 2, 0), np.float32(1)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1), np.float32(255)


def centered(size: Size, kept: tuple[float, float]) -> Region:
    rows, columns = kept[0] / size[0], kept[1] / size[1]
    return (1 - columns) / 2, (1 - rows) / 2, columns, rows

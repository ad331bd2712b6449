"""fastai v1's way of a photo at validation. Lines in parentheses are of fastai 1.0.50's vision/image.py and
vision/transform.py; 1.0.61 does the same.
"""

from typing import Literal

import numpy as np
from PIL import Image

from app.errors import BadImage
from app.photos.fastai_steps import Resize
from app.photos.resample import PadMode, grid_sample
from app.photos.steps import PixelStep, ResizeMethod, Shown, as_numbers, as_text
from app.types import Float32, Size


class FastaiV1(PixelStep, frozen=True, tag=True):
    """fastai v1's `size=` at validation (image.py:96-124, 388-409, 523-545; transform.py:167-184): resample
    so that the picture covers `size`, is covered by it or is squished to it; then cut or pad the center.
    """

    size: Size
    method: ResizeMethod = "crop"
    pad_mode: PadMode = "reflection"

    def __str__(self) -> str:
        """See Step: the arguments of a databunch."""
        method = (
            ""
            if self.method == self.default_method
            else f", resize_method=ResizeMethod.{self.method.upper()}"
        )
        more = "" if self.pad_mode == "reflection" else f", padding_mode={self.pad_mode!r}"
        return f"ds_tfms=get_transforms(), size={as_text(self.size)}{method}{more}"

    @property
    def default_method(self) -> ResizeMethod:
        """v1 crops to a side and squishes to a pair of sides, unless it is told otherwise (image.py:105)."""
        return "crop" if self.size[0] == self.size[1] else "squish"

    def __call__(self, image: Image.Image | Float32) -> Float32:
        """See PixelStep."""
        pixels, divisor = as_numbers(image)
        target = self._target(pixels.shape[:2])
        kept = min(target[0], self.size[0]), min(target[1], self.size[1])
        if self.method == "pad":  # the crop comes after the padding, which changes the rounding
            kept = target
        shrink = min(pixels.shape[0] / target[0], pixels.shape[1] / target[1]) / 2  # image.py:531
        sampled = grid_sample(pixels, target, kept, shrink)
        if self.method == "pad":
            sampled = self._padded(sampled)
        return np.divide(sampled, divisor, out=sampled)

    def _target(self, size: Size) -> Size:
        if self.method == "squish":
            return self.size
        longer = min if self.method == "crop" else max
        ratio = longer(size[0] / self.size[0], size[1] / self.size[1])
        return round(size[0] / ratio), round(size[1] / ratio)

    def _padded(self, sampled: Float32) -> Float32:
        """v1's `crop_pad` (transform.py:167): the same padding on both sides, then the center."""
        pads = [
            max((want - side + 1) // 2, 0) for want, side in zip(self.size, sampled.shape[1:], strict=True)
        ]
        if self.pad_mode == "reflection" and any(
            pad >= side for pad, side in zip(pads, sampled.shape[1:], strict=True)
        ):
            raise BadImage(
                f"The picture is {sampled.shape[2]} x {sampled.shape[1]} pixels when it is scaled: too "
                "narrow for the padding by reflection that this model was trained with."
            )
        kind: Literal["reflect", "edge", "constant"] = "reflect"
        if self.pad_mode != "reflection":
            kind = "edge" if self.pad_mode == "border" else "constant"
        padded = np.pad(sampled, [(0, 0), *((pad, pad) for pad in pads)], kind)
        top, left = (
            int((there - kept + 1) * 0.5) for there, kept in zip(padded.shape[1:], self.size, strict=True)
        )
        return np.ascontiguousarray(padded[:, top : top + self.size[0], left : left + self.size[1]])

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return Resize(self.size, self.method).shown(size)

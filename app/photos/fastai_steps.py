"""fastai v2's transforms at validation. Lines in parentheses are of fastai 2.8.12 vision/augment.py."""

import math

import numpy as np
from PIL import Image

from app.errors import BadImage
from app.photos.resample import COARSE, Filter, Mode, PadMode, Resized, crop_or_pad, grid_sample
from app.photos.steps import (
    WHOLE,
    PictureStep,
    PixelStep,
    ResizeMethod,
    Shown,
    as_numbers,
    as_text,
    centered,
)
from app.types import Float32, Size


class Resize(PictureStep, frozen=True, tag=True):
    """`Resize` (240-272): crop or pad to the ratio of `size`, unless it squishes; then resize."""

    size: Size
    method: ResizeMethod = "crop"
    pad_mode: PadMode = "reflection"
    resample: Filter = "bilinear"

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        if self.method != "squish":
            cut = self._cut(image.height, image.width)
            left, top = (int((there - kept) * 0.5) for there, kept in zip(image.size, cut[::-1], strict=True))
            image = crop_or_pad(image, cut, left, top, self.pad_mode)
        return resized(image, self.size, self.resample)

    @property
    def ordered(self) -> bool:
        """See PictureStep: both sides shrink alike, unless it squishes."""
        return self.method == "squish" or self.size[0] > 2 * self.size[1]

    def _cut(self, height: int, width: int) -> Size:
        longer = max if self.method == "pad" else min
        scale = longer(width / self.size[1], height / self.size[0])
        return int(scale * self.size[0]), int(scale * self.size[1])

    def shown(self, size: Size) -> Shown:
        """See Step."""
        if self.method == "squish":
            return WHOLE, self.size
        longer = max if self.method == "pad" else min
        scale = longer(size[1] / self.size[1], size[0] / self.size[0])
        return centered(size, (self.size[0] * scale, self.size[1] * scale)), self.size

    @property
    def least(self) -> Size | None:
        """See Step."""
        return None if self.resample in COARSE else self.size


class RandomResizedCrop(PictureStep, frozen=True, tag=True):
    """`RandomResizedCrop` (286-325): squish the whole to more than `size`, then cut the center."""

    size: Size
    val_xtra: float = 0.14
    resample: Filter = "bilinear"

    @property
    def extra(self) -> int:
        """How many pixels more than `size` it squishes to (306), a multiple of 8."""
        return math.ceil(max(self.size) * self.val_xtra / 8) * 8

    @property
    def squished(self) -> Size:
        """The size that it squishes to."""
        return self.size[0] + self.extra, self.size[1] + self.extra

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        edge = self.extra // 2
        return crop_or_pad(resized(image, self.squished, self.resample), self.size, edge, edge, "zeros")

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return centered(self.squished, self.size), self.size

    @property
    def least(self) -> Size | None:
        """See Step."""
        return None if self.resample in COARSE else self.squished


class CropPad(PictureStep, frozen=True, tag=True):
    """`CropPad` (154-171): the central `size`, padded where the picture is smaller."""

    size: Size
    pad_mode: PadMode = "zeros"

    @property
    def ordered(self) -> bool:
        """See PictureStep."""
        return False

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        left, top = (image.width - self.size[1]) // 2, (image.height - self.size[0]) // 2
        return crop_or_pad(image, self.size, left, top, self.pad_mode)

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return centered(size, self.size), self.size


class RandomCrop(PictureStep, frozen=True, tag=True):
    """`RandomCrop` (175-200), which at validation is a `CropPad` with black, but in another order."""

    size: Size

    @property
    def ordered(self) -> bool:
        """See PictureStep."""
        return False

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        return CropPad(self.size)(image, resized)

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return CropPad(self.size).shown(size)


class RatioResize(PictureStep, frozen=True, tag=True):
    """`RatioResize` (328-342): the longer side becomes `max_sz`, by `Resize` to whole pixels.

    The few rows or columns that the rounding leaves over fastai cuts off at random sides; here, at both.
    """

    max_sz: int
    resample: Filter = "bilinear"

    def _resize(self, height: int, width: int) -> Resize:
        longer = max(height, width)
        size = int(height * self.max_sz / longer), int(width * self.max_sz / longer)
        if min(size) < 1:
            raise BadImage(f"Of this picture {size[1]} x {size[0]} pixels would remain: too narrow.")
        return Resize(size, resample=self.resample)

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        return self._resize(image.height, image.width)(image, resized)

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return self._resize(*size).shown(size)

    @property
    def least(self) -> Size | None:
        """See Step."""
        return None if self.resample in COARSE else (self.max_sz, self.max_sz)


class AffineCoordTfm(PixelStep, frozen=True, tag="aug_transforms"):
    """`aug_transforms(size=...)` at validation, or one of its transforms (430-485): the identity on a grid of
    `size`, which is None for as it is. That blurs pictures more than twice as high as wide; see `pre_shrink`.
    """

    size: Size | None = None
    mode: Mode = "bilinear"
    pad_mode: PadMode = "reflection"
    align_corners: bool = True

    def __str__(self) -> str:
        """See Step."""
        arguments = (f"{key}={as_text(value)}" for key, value in self.call[1].items())
        return f"*aug_transforms({', '.join(arguments)})"

    def __call__(self, image: Image.Image | Float32) -> Float32:
        """See PixelStep."""
        pixels, divisor = as_numbers(image)
        source = pixels.shape[0], pixels.shape[1]
        size, shrink = self.size or source, pre_shrink(source, self.size or source)
        sampled = grid_sample(pixels, size, size, shrink, self.mode, self.pad_mode, self.align_corners)
        return np.divide(sampled, divisor, out=sampled)

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return WHOLE, self.size or size

    def changes(self, size: Size) -> bool:
        """Tell whether it changes pictures of `size`."""
        shrinks = self.mode == "bilinear" and pre_shrink(size, size) > 1
        return shrinks or self.size is not None


class RandomResizedCropGPU(PixelStep, frozen=True, tag=True):
    """`RandomResizedCropGPU` (488-532), and so `aug_transforms(size=..., min_scale=...)`: the center whose
    ratio of width to height lies within `ratio`, on a grid of `size`, which is None for as it is.
    """

    size: Size | None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mode: Mode = "bilinear"
    valid_scale: float = 1.0

    def _cut(self, height: int, width: int) -> Size:
        cut = height, width
        if width / height < self.ratio[0]:
            cut = int(width / self.ratio[0]), width
        elif width / height > self.ratio[1]:
            cut = height, int(height * self.ratio[1])
        cut = int(cut[0] * self.valid_scale), int(cut[1] * self.valid_scale)
        if min(cut) < 1:
            raise BadImage(f"Of this picture {cut[1]} x {cut[0]} pixels would remain: too narrow.")
        return cut

    def __call__(self, image: Image.Image | Float32) -> Float32:
        """See PixelStep."""
        pixels, divisor = as_numbers(image)
        cut = height, width = self._cut(*pixels.shape[:2])
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
        if self.size is None:
            return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / divisor
        return grid_sample(pixels, self.size, self.size, pre_shrink(cut, self.size), self.mode) / divisor

    def shown(self, size: Size) -> Shown:
        """See Step."""
        cut = self._cut(*size)
        return centered(size, cut), self.size or cut


def pre_shrink(source: Size, target: Size) -> float:
    """By how much a picture is averaged before it is sampled (361).

    fastai takes the last two dimensions of its grid, (N, height, width, 2), for height and width.
    """
    return min(source[0] / target[1], source[1] / 2) / 2

"""From a picture to the pixels a network was trained on: (3, H, W) float32, exactly as fastai makes them.

`Preprocess` is one of fastai's validation-time pipelines. The numbers in parentheses are lines of fastai
2.8.12's vision/augment.py and of fastai 1.0.50's vision/image.py.
"""

import math
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from PIL import Image

from app.errors import SettingsError
from app.photos.decode import MAX_PIXELS, too_large
from app.types import Array, Float32, Size

PipelineName = Literal["resize", "random_resized_crop", "presize", "fastai1"]
ResizeMethod = Literal["crop", "squish", "pad"]
PadMode = Literal["reflection", "border", "zeros"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# the methods that a pipeline knows, where it does not know all; v1's "pad" fails by itself on wide pictures
METHODS: Final[dict[str, tuple[ResizeMethod, ...]]] = {
    "random_resized_crop": ("crop",),
    "fastai1": ("crop", "squish"),
}
PAD_MODES: Final[dict[PadMode, Literal["reflect", "edge", "constant"]]] = {
    "reflection": "reflect",
    "border": "edge",
    "zeros": "constant",
}


class Preprocess(Struct, frozen=True):
    """One of fastai's validation-time pipelines, from an RGB image to normalized pixels.

    `size` is (height, width) of what the network sees. `method` and `pad_mode` are those of `Resize`, in
    "resize" and "presize", or v1's `resize_method`. `presize` is the size of the `Resize` that comes before
    `aug_transforms(size=...)`; `val_xtra` is of `RandomResizedCrop`.
    """

    pipeline: PipelineName = "resize"
    size: Size = (224, 224)
    method: ResizeMethod = "crop"
    pad_mode: PadMode = "reflection"
    presize: Size = (460, 460)
    val_xtra: float = 0.14
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse what is not reproduced exactly. Raises SettingsError."""
        if self.method not in METHODS.get(self.pipeline, (self.method,)):
            raise SettingsError(
                f"resize_method is '{self.method}', which is not reproduced for the pipeline "
                f"'{self.pipeline}'; with it {' and '.join(METHODS[self.pipeline])} are."
            )

    @property
    def least(self) -> Size:
        """Four times the (height, width) that photos are resampled to: what is finer than that is averaged
        away, but for less than a tenth of a gray level.
        """
        extra = extra_edge(self.size, self.val_xtra) if self.pipeline == "random_resized_crop" else 0
        height, width = self.presize if self.pipeline == "presize" else self.size
        return 4 * (height + extra), 4 * (width + extra)

    def __call__(self, image: Image.Image) -> Float32:
        """(H, W) RGB image -> (3, height, width) float32, (x / 255 - mean) / std. Raises BadImage."""
        match self.pipeline:
            case "resize":
                pixels = _scaled(resize(image, self.size, self.method, self.pad_mode))
            case "random_resized_crop":
                pixels = _scaled(random_resized_crop(image, self.size, self.val_xtra))
            case "presize":
                large = resize(image, self.presize, self.method, self.pad_mode)
                pixels = _resampled(large, self.size, self.size)
            case "fastai1":
                pixels = fastai1(image, self.size, self.method)
        # channel by channel and in place: a tenth of the time that it takes pixel by pixel
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        pixels -= np.array(self.mean, np.float32)[:, np.newaxis, np.newaxis]
        pixels /= np.array(self.std, np.float32)[:, np.newaxis, np.newaxis]
        return pixels


def _scaled(image: Image.Image) -> Float32:
    """(H, W, 3) float32 in 0..1, which lie channel by channel in memory."""
    channels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    channels /= np.float32(255)
    return channels.transpose(1, 2, 0)


def resize(image: Image.Image, size: Size, method: ResizeMethod, pad_mode: PadMode) -> Image.Image:
    """v2's `Resize(size, method)` at validation (2.8: 240-272): crop or pad to the ratio, or squish;
    bilinear.
    """
    width, height = image.size
    if method != "squish":
        longer = max if method == "pad" else min
        scale = longer(width / size[1], height / size[0])
        image = _centered(image, int(scale * size[1]), int(scale * size[0]), pad_mode)
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def _centered(image: Image.Image, width: int, height: int, pad_mode: PadMode) -> Image.Image:
    """The center of an image, continued as `pad_mode` says where the image ends (2.8: 127-138)."""
    left, top = int((image.width - width) * 0.5), int((image.height - height) * 0.5)
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    found = image.size
    image = image.crop((max(left, 0), max(top, 0), right, bottom))
    if image.size == (width, height):
        return image
    if width * height > MAX_PIXELS:
        raise too_large(f"{found[0]} x {found[1]} pixels, padded to {width} x {height}")
    rows = (max(-top, 0), height - image.height - max(-top, 0))
    columns = (max(-left, 0), width - image.width - max(-left, 0))
    return Image.fromarray(np.pad(np.asarray(image), (rows, columns, (0, 0)), PAD_MODES[pad_mode]))


def random_resized_crop(image: Image.Image, size: Size, val_xtra: float) -> Image.Image:
    """v2's `RandomResizedCrop(size)` at validation (2.8: 295-325): squish to more, then cut the center."""
    extra = extra_edge(size, val_xtra)
    edge = extra // 2
    squished = image.resize((size[1] + extra, size[0] + extra), Image.Resampling.BILINEAR)
    return squished.crop((edge, edge, edge + size[1], edge + size[0]))


def extra_edge(size: Size, val_xtra: float) -> int:
    """How many pixels more than `size` v2's `RandomResizedCrop` squishes to (2.8: 306), a multiple of 8."""
    return math.ceil(max(size) * val_xtra / 8) * 8


# --- torch's grid_sample on floats, without torch ----------------------------------------------------------


def fastai1(image: Image.Image, size: Size, method: ResizeMethod) -> Float32:
    """v1's `size=224` at validation (1.0.50: 96-124, 388-409, 593): (height, width, 3) float32 in 0..1.

    Resampled so that the image covers `size`, or squished to it; then a center crop.
    """
    target = size
    if method == "crop":
        ratio = min(image.height / size[0], image.width / size[1])
        target = round(image.height / ratio), round(image.width / ratio)
    return _resampled(image, target, size)


def _resampled(image: Image.Image, target: Size, kept: Size) -> Float32:
    """An image resampled to `target` as both fastais do it on tensors, and of that the central `kept`, in
    0..1.

    An area pre-shrink, then bilinear `grid_sample` (1.0.50: 523-545; 2.8: 350-366). Both are linear and
    separable: one weight matrix for the rows and one for the columns, of the kept rows and columns alone.
    """
    source = image.height, image.width
    shrink = min(source[0] / target[0], source[1] / target[1]) / 2
    rows, columns = (_weights(*axis) for axis in zip(source, target, (shrink, shrink), kept, strict=True))
    pixels = _weighted_sum(rows, np.asarray(image))  # (kept height, W, 3)
    return _weighted_sum(columns, pixels.transpose(1, 0, 2)).transpose(1, 0, 2) / np.float32(255)


def _weights(length: int, target: int, shrink: float, kept: int) -> Float32:
    """(kept, length) weights from the `length` source pixels of an axis to the central ones of `target`.

    A row mixes two neighbors of `grid_sample` with align_corners=True; each is a mean over a window of
    `adaptive_avg_pool2d`, which is one pixel where nothing is shrunk.
    """
    # fastai says interpolate(scale_factor=1/shrink): the product decides whether 448 or, by rounding, 447
    # remain
    shrunk = math.floor(length * (1 / shrink)) if shrink > 1 else length
    first = int((target - kept + 1) * 0.5)
    weights = np.zeros((kept, length), np.float32)
    for row, position in zip(weights, np.linspace(0, shrunk - 1, target)[first : first + kept], strict=True):
        left = min(int(position), max(shrunk - 2, 0))
        for window, share in ((left, 1 - (position - left)), (left + 1, position - left)):
            start, end = window * length // shrunk, -(-(window + 1) * length // shrunk)
            row[start:end] += share / (end - start)
    return weights


def _weighted_sum(weights: Float32, pixels: Array) -> Float32:
    """(n, L) weights, (L, M, 3) pixels -> (n, M, 3): a matrix product that skips the zeros of a band."""
    result = np.empty((len(weights), *pixels.shape[1:]), np.float32)
    for row, out in zip(weights, result, strict=True):
        used = np.flatnonzero(row)
        band = slice(used[0], used[-1] + 1)
        out[:] = np.tensordot(row[band], pixels[band], axes=1)
    return result

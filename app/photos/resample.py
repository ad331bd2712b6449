"""How libraries make a picture larger or smaller: Pillow's filters, and torch's `grid_sample` without torch.

Knows pixels and weights. Which library resizes what, and to which size, is written in `steps`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from PIL import Image

from app.photos.decode import MAX_PIXELS, too_large
from app.types import Array, Float32, Size

PadMode = Literal["reflection", "border", "zeros"]
Mode = Literal["bilinear", "nearest", "bicubic"]  # of torch's grid_sample
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Resized = Callable[[Image.Image, Size, Filter], Image.Image]  # to (height, width)

COARSE: Final = ("nearest", "box")  # which do not average away what a smaller JPEG lacks
FILTERS: Final[tuple[Filter, ...]] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
PAD_MODES: Final[dict[PadMode, Literal["reflect", "edge", "constant"]]] = {
    "reflection": "reflect",
    "border": "edge",
    "zeros": "constant",
}
NEW_ORDER: Final = 13  # the first version of Pillow that may begin with the columns
CUBIC: Final = -0.75  # torch 2.13, aten/native/GridSampler.h: the A of its bicubic weights
GROUP: Final = 64  # source rows that a block of output rows reads together: their floats stay in the cache


# --- Pillow ------------------------------------------------------------------------------------------------


def resize(image: Image.Image, size: Size, resample: Filter, *, newest: bool = False) -> Image.Image:
    """Resize to (height, width) with the rounding of Pillow up to 12, or with that of 13 where `newest`.

    Pillow rounds to whole gray levels between its two passes. Up to 12 the rows come first; 13 begins with
    the columns where that leaves less to do (13.0.0 src/libImaging/Resample.c).
    """
    (height, width), kind = size, getattr(Image.Resampling, resample.upper())
    if resample != "nearest" and min(image.size) > 0:  # of one row a crop may leave none, which becomes black
        saved = image.width - width, image.height - height
        columns_first = newest and saved[1] > 0 and saved[1] > 2 * saved[0]
        image = image.resize((image.width, height) if columns_first else (width, image.height), kind)
    return image.resize((width, height), kind)


def crop_or_pad(image: Image.Image, size: Size, left: int, top: int, pad_mode: PadMode) -> Image.Image:
    """Cut (height, width) pixels from (left, top) on, continued as `pad_mode` says where the picture ends.

    Raises BadImage for more pixels than a photo may have.
    """
    (height, width), found = size, image.size
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    image = image.crop((max(left, 0), max(top, 0), right, bottom))
    if image.size == (width, height):
        return image
    if width * height > MAX_PIXELS:
        raise too_large(f"{found[0]} x {found[1]} pixels, padded to {width} x {height}")
    rows = (max(-top, 0), height - image.height - max(-top, 0))
    columns = (max(-left, 0), width - image.width - max(-left, 0))
    pixels = np.asarray(image)
    padding = [rows, columns, (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, padding, PAD_MODES[pad_mode]))


# --- torch's grid_sample -----------------------------------------------------------------------------------


def grid_sample(
    pixels: Array,
    target: Size,
    kept: Size,
    shrink: float,
    mode: Mode = "bilinear",
    pad_mode: PadMode = "reflection",
    align_corners: bool = True,
) -> Float32:
    """(H, W, C) pixels of any type -> the central `kept` of (C, *target) float32, as both fastais resample.

    An area pre-shrink by `shrink`, where that is more than 1 and the mode bilinear, then `grid_sample` on a
    regular grid (fastai 2.8.12 vision/augment.py:350-366; 1.0.50 vision/image.py:523-545). Both are linear
    and separable: one weight matrix for the rows, one for the columns, of the kept rows and columns alone.
    """
    source = pixels.shape[:2]
    zoom = 1.0 if align_corners else max(target) / max(max(target) - 1, 1)  # the grid ends before the edges
    if mode != "bilinear" or shrink <= max(1, zoom):
        shrink = 1.0
    rows, columns = (
        _weights(length, wanted, shrink, shown, mode, pad_mode, align_corners)
        for length, wanted, shown in zip(source, target, kept, strict=True)
    )
    used = slice(min(block.start for block in columns), max(block.end for block in columns))
    narrow = _weighted_sum(rows, pixels[:, used])  # (kept height, used columns, C)
    across = np.ascontiguousarray(narrow.transpose(1, 2, 0))  # (used columns, C, kept height)
    return _weighted_sum(columns, across, used.start).transpose(1, 2, 0)


class Block(Struct, frozen=True):
    """Neighboring output pixels of an axis: their (n, end - start) weights of the source's start..end."""

    start: int
    end: int
    weights: Float32


@lru_cache(maxsize=128)  # phones take photos of few sizes, and an axis of 4,000 pixels needs 100 kB
def _weights(
    length: int, target: int, shrink: float, kept: int, mode: Mode, pad_mode: PadMode, align_corners: bool
) -> tuple[Block, ...]:
    """The weights of the `length` source pixels of an axis in the central `kept` ones of `target`.

    Each tap of `grid_sample` is a mean over a window of `adaptive_avg_pool2d`, which is one pixel where
    nothing is shrunk.
    """
    # fastai says interpolate(scale_factor=1/shrink): the product decides whether 448 or, by rounding, 447
    # remain
    shrunk = math.floor(length * (1 / shrink)) if shrink > 1 else length
    first = int((target - kept + 1) * 0.5)
    positions = _positions if mode != "nearest" else _torch_positions  # halves are rounded as torch's noise
    taps, shares = _taps(positions(shrunk, target, align_corners)[first : first + kept], mode)
    taps, counted = _inside(taps, shrunk, pad_mode, align_corners)
    starts, ends = taps * length // shrunk, -(-(taps + 1) * length // shrunk)
    shares = np.where(counted, shares, 0) / (ends - starts)
    return tuple(
        _block(starts[rows], ends[rows], shares[rows])
        for rows in _groups(starts.min(axis=1), ends.max(axis=1))
    )


def _groups(starts: Array, ends: Array) -> Iterator[slice]:
    """Output pixels that together read about GROUP source pixels."""
    row = 0
    while row < len(starts):
        stop = row + 1
        while stop < len(starts) and ends[row : stop + 1].max() - starts[row : stop + 1].min() <= GROUP:
            stop += 1
        yield slice(row, stop)
        row = stop


def _block(starts: Array, ends: Array, shares: Array) -> Block:
    """Windows, each with its share, as one dense matrix."""
    start, end = int(starts.min()), int(ends.max())
    # each window adds its share from its start on, and takes it away behind its end
    steps = np.zeros((len(starts), end - start + 1))
    rows = np.broadcast_to(np.arange(len(starts))[:, np.newaxis], starts.shape)
    np.add.at(steps, (rows, starts - start), shares)
    np.subtract.at(steps, (rows, ends - start), shares)
    return Block(start, end, steps.cumsum(axis=1)[:, :-1].astype(np.float32))


def _positions(length: int, target: int, align_corners: bool) -> Array:
    """Where `target` pixels of a regular grid lie among `length` (torch 2.13 aten/native/AffineGridGenerator,
    GridSampler.h).
    """
    if target == 1:
        return np.zeros(1) if align_corners else np.full(1, (length - 1) / 2)
    if align_corners:
        return np.linspace(0, length - 1, target)
    return (np.arange(target) + 0.5) * length / target - 0.5


def _torch_positions(length: int, target: int, align_corners: bool) -> Array:
    """The same as torch rounds it: `linspace` by fused multiply-adds, the rest in float32."""
    step = float(np.float32(2 / max(target - 1, 1)))
    indexes = np.arange(target)
    half = np.where(indexes < target // 2, step * indexes - 1, 1 - step * (target - 1 - indexes))
    grid = half.astype(np.float32)
    if align_corners:
        return (grid + 1) / 2 * np.float32(length - 1)
    grid = grid * np.float32(target - 1) / np.float32(target)
    return ((grid + 1) * np.float32(length) - 1) / 2


def _taps(positions: Array, mode: Mode) -> tuple[Array, Array]:
    """The pixels that each position reads, and their shares: both (positions, taps)."""
    if mode == "nearest":
        return np.rint(positions).astype(int)[:, np.newaxis], np.ones((len(positions), 1))
    left = np.floor(positions).astype(int)
    t = positions - left
    if mode == "bilinear":
        return np.stack([left, left + 1], axis=1), np.stack([1 - t, t], axis=1)
    distances = np.stack([t + 1, t, 1 - t, 2 - t], axis=1)
    near = ((CUBIC + 2) * distances - (CUBIC + 3)) * distances**2 + 1
    far = ((CUBIC * distances - 5 * CUBIC) * distances + 8 * CUBIC) * distances - 4 * CUBIC
    return np.stack([left - 1, left, left + 1, left + 2], axis=1), np.where(distances <= 1, near, far)


def _inside(taps: Array, length: int, pad_mode: PadMode, align_corners: bool) -> tuple[Array, Array]:
    """The taps brought into 0..length-1 as `pad_mode` says, and which of them count."""
    inside = (taps >= 0) & (taps < length)
    if pad_mode == "reflection" and length > 1:
        # at the centers of the outer pixels, or with align_corners=False at their outer edges
        period = 2 * (length - 1) if align_corners else 2 * length
        taps = np.mod(taps, period)
        taps = np.where(taps >= length, period - taps - (0 if align_corners else 1), taps)
    counted = inside if pad_mode == "zeros" else np.ones_like(inside)
    return np.clip(taps, 0, length - 1), counted


def _weighted_sum(axis: Sequence[Block], pixels: Array, origin: int = 0) -> Float32:
    """Blocks of an axis, (L, ...) pixels from `origin` on -> (n, ...) float32."""
    count = sum(len(block.weights) for block in axis)
    result = np.empty((count, *pixels.shape[1:]), np.float32)
    out, row = result.reshape(count, -1), 0
    for block in axis:
        part = pixels[block.start - origin : block.end - origin]
        flat = part.reshape(len(part), -1).astype(np.float32, copy=False)
        np.matmul(block.weights, flat, out=out[row : row + len(block.weights)])
        row += len(block.weights)
    return result

"""How libraries make a picture larger or smaller, as ONNX nodes: the formulas of `photos.resample`.

Pillow weighs with fixed-point numbers of 22 bits and rounds to whole levels after each axis. Here each weight
is the sum of two float32 numbers of 11 bits. Their products with whole levels, and the sums of these, are
exact in float32, in any order: all runtimes compute the same pixels.

An axis is computed in blocks of output pixels. Each block reads its own part of the source.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from app.exporting.values import Value
from app.photos.resample import CUBIC, Filter, Mode, PadMode
from app.types import Size

BLOCK: Final = 16  # output pixels
FRACTION: Final = 22  # bits of a weight in Pillow (13.0.0 src/libImaging/Resample.c, PRECISION_BITS)
HALF: Final = 11  # bits of each of its two parts

ROWS, COLUMNS = 1, 2  # the axes of (C, H, W)

Sides = tuple[Value, Value]  # height, width: int64 scalars


class Weights(Struct, frozen=True):
    """The weights of an axis: (blocks, n, count) for `count` source pixels from `starts` (blocks,) on.

    `n` is BLOCK, or twice that with the upper halves first. `size` of the outputs are wanted.
    """

    starts: Value
    count: Value
    values: Value
    size: Value


# --- Pillow ------------------------------------------------------------------------------------------------


def _sinc(x: Value) -> Value:
    """sin(pi x) / (pi x), 1 at 0."""
    scaled = x * math.pi
    apart = x.abs() > 0
    return (scaled.sin() / scaled.where(apart, 1)).where(apart, 1)


def _bicubic(x: Value) -> Value:
    a = -0.5
    near = ((x * (a + 2)) - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return near.where(x < 1, far).where(x < 2)


def _hamming(x: Value) -> Value:
    value = _sinc(x) * ((x * math.pi).cos() * 0.46 + 0.54)
    return value.where(x < 1)


FILTERS: Final[dict[Filter, tuple[float, Callable[[Value], Value]]]] = {  # their reach, and f(|x|)
    "box": (0.5, lambda x: (x * 0 + 1).where(x <= 0.5)),
    "bilinear": (1.0, lambda x: (1 - x).maximum(0)),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: (_sinc(x) * _sinc(x / 3)).where(x < 3)),
}


def pillow_weights(length: Value, size: Value, resample: Filter) -> Weights:
    """The weights with which Pillow resizes an axis (13.0.0 src/libImaging/Resample.c, precompute_coeffs)."""
    reach, weight_of = FILTERS[resample]
    long = length.to(np.float64)
    scale = long / size.to(np.float64)
    widened = scale.maximum(1)
    centers = (_outputs(size).to(np.float64) + 0.5) * scale  # (blocks, BLOCK)
    support = widened * reach
    low = (centers - support + 0.5).floor().maximum(0)
    high = (centers + support + 0.5).floor().minimum(long)
    starts, count, places = _spans(low, high, length)
    distances = (places - centers.unsqueezed(2) + 0.5) * _inverse(widened)
    inside = (places >= low.unsqueezed(2)) & (places < high.unsqueezed(2))
    if resample == "box":  # of which the lower bound does not count
        inside = inside & (distances > -0.5)
    weights = weight_of(distances.abs()).where(inside)
    total = weights.reduced("ReduceSum", 2, keep=True)
    fixed = weights / total.where(total.abs() > 0, 1) * (1 << FRACTION)
    rounded = (fixed.abs() + 0.5).floor()
    whole = rounded.where(fixed >= 0, rounded * -1)
    upper = (whole * 0.5**HALF + 0.5).floor()
    lower = whole - upper * (1 << HALF)
    halves = upper.writer.concat([upper * 0.5 ** (FRACTION - HALF), lower * 0.5**FRACTION], axis=1)
    return Weights(starts, count, halves.to(np.float32), size)


def resize(levels: Value, size: Sides, resample: Filter, *, newest: bool = False) -> Value:
    """Resize (C, H, W) uint8 as `photos.resample.resize` does: rows or columns first decides the rounding."""
    height, width = size
    if resample == "nearest":
        rows, columns = _nearest(levels.side(ROWS), height), _nearest(levels.side(COLUMNS), width)
        levels = levels.writer.add(
            "Pad", levels, levels.writer.vector([0, 0, 0, 0, 1, 1])
        )  # of nothing, black
        return levels.take(rows, ROWS).take(columns, COLUMNS)
    rows_first = _pillow_axis(COLUMNS, width, resample), _pillow_axis(ROWS, height, resample)

    def both(steps: Sequence[Callable[[Value], Value]]) -> Value:
        return steps[1](steps[0](levels))

    if not newest:
        return both(rows_first)
    saved = levels.side(ROWS) - height, levels.side(COLUMNS) - width
    columns_first = (saved[0] > 0) & (saved[0] > saved[1] * 2)
    return levels.writer.choose(columns_first, lambda: both(rows_first[::-1]), lambda: both(rows_first))


def _pillow_axis(axis: int, size: Value, resample: Filter) -> Callable[[Value], Value]:
    return lambda levels: _weighted(
        levels, axis, pillow_weights(levels.side(axis), size, resample), _rounded(axis)
    )


def _rounded(axis: int) -> Callable[[Value], Value]:
    """The whole level nearest to the sum of both halves, where halves round up: each step is exact."""

    def rounded(sums: Value) -> Value:
        upper = sums.sliced((axis, 0, BLOCK)) + 0.5
        lower = sums.sliced((axis, BLOCK, 2 * BLOCK))
        whole = upper.floor()
        level = whole + (upper - whole + lower).floor()
        return level.maximum(0).minimum(255).to(np.uint8)

    return rounded


def _nearest(length: Value, size: Value) -> Value:
    """The source of each output pixel, (size,) int64, by Pillow's sums of float64 (Geometry.c,
    ImagingScaleAffine).
    """
    writer = length.writer
    scale = length.to(np.float64) / size.to(np.float64)
    steps = (writer.range(1, size) * 0 + 1).to(np.float64) * scale
    parts = writer.concat([(scale * 0.5).unsqueezed(0), steps], axis=0)
    return writer.add("CumSum", parts, writer.constant(0, np.int64)).to(np.int64)


# --- torch's grid_sample -----------------------------------------------------------------------------------


def grid_sample(
    pixels: Value,
    target: Sides,
    kept: Sides,
    shrink: Value,
    mode: Mode = "bilinear",
    pad_mode: PadMode = "reflection",
    align_corners: bool = True,
) -> Value:
    """(C, H, W) pixels -> the central `kept` of (C, *target) float32; see `photos.resample.grid_sample`."""
    zoom = 1.0
    if not align_corners:
        longest = target[0].maximum(target[1]).to(np.float64)
        shrinks = shrink > (longest / (longest - 1).maximum(1)).maximum(1)
    else:
        shrinks = shrink > zoom
    shrink = shrink.where(shrinks, 1) if mode == "bilinear" else shrink * 0 + 1
    for axis, wanted, shown in zip((COLUMNS, ROWS), target[::-1], kept[::-1], strict=True):
        weights = _grid_weights(pixels.side(axis), wanted, shrink, shown, mode, pad_mode, align_corners)
        pixels = _weighted(pixels, axis, weights, lambda sums: sums)
    return pixels


def _grid_weights(
    length: Value,
    target: Value,
    shrink: Value,
    kept: Value,
    mode: Mode,
    pad_mode: PadMode,
    align_corners: bool,
) -> Weights:
    """The weights of an axis: of each tap the mean over its window, as `photos.resample._weights`."""
    floats = length.to(np.float64)
    shrunk = (floats * _inverse(shrink)).floor().where(shrink > 1, floats).to(np.int64)
    first = (target - kept + 1) // 2
    positions = _positions if mode != "nearest" else _torch_positions
    where = positions(_outputs(kept) + first, shrunk, target, align_corners)
    bounds = []
    for tap, share in _taps(where, mode):
        place, counted = _inside(tap, shrunk, pad_mode, align_corners)
        start, stop = place * length // shrunk, ((place + 1) * length + shrunk - 1) // shrunk
        bounds.append((start.to(np.float64), stop.to(np.float64), share.where(counted)))
    low, high = bounds[0][:2]
    for start, stop, _ in bounds[1:]:
        low, high = low.minimum(start), high.maximum(stop)
    starts, count, places = _spans(low, high, length)
    total = places * 0
    for start, stop, share in bounds:
        inside = (places >= start.unsqueezed(2)) & (places < stop.unsqueezed(2))
        total = total + (share / (stop - start)).unsqueezed(2).where(inside)
    return Weights(starts, count, total.to(np.float32), kept)


def _positions(outputs: Value, length: Value, target: Value, align_corners: bool) -> Value:
    """Where output pixels of a regular grid of `target` lie among `length`."""
    numbers, long, many = (each.to(np.float64) for each in (outputs, length, target))
    if align_corners:
        return numbers * ((long - 1) / (many - 1).maximum(1))
    return (numbers + 0.5) * long / many - 0.5


def _torch_positions(outputs: Value, length: Value, target: Value, align_corners: bool) -> Value:
    """The same as torch rounds it: `linspace` by fused multiply-adds, the rest in float32."""
    numbers, many = outputs.to(np.float64), target.to(np.float64)
    step = (2 / (many - 1).maximum(1)).to(np.float32).to(np.float64)
    before, behind = numbers * step - 1, 1 - step * (many - 1 - numbers)
    grid = before.where(outputs < target // 2, behind).to(np.float32)
    long = length.to(np.float32)
    if align_corners:
        return ((grid + 1) / 2 * (long - 1)).to(np.float64)
    edges = grid * (many - 1).to(np.float32) / many.to(np.float32)
    return (((edges + 1) * long - 1) / 2).to(np.float64)


def _taps(positions: Value, mode: Mode) -> list[tuple[Value, Value]]:
    """The pixels that each position reads, int64, and their shares."""
    if mode == "nearest":
        return [(positions.round().to(np.int64), positions * 0 + 1)]
    left = positions.floor()
    t, whole = positions - left, left.to(np.int64)
    if mode == "bilinear":
        return [(whole, 1 - t), (whole + 1, t)]

    def near(x: Value) -> Value:
        return (x * (CUBIC + 2) - (CUBIC + 3)) * x * x + 1

    def far(x: Value) -> Value:
        return ((x * CUBIC - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    return [(whole - 1, far(t + 1)), (whole, near(t)), (whole + 1, near(1 - t)), (whole + 2, far(2 - t))]


def _inside(taps: Value, length: Value, pad_mode: PadMode, align_corners: bool) -> tuple[Value, Value]:
    """The taps brought into 0..length-1 as `pad_mode` says, and which of them count."""
    inside = (taps >= 0) & (taps < length)
    if pad_mode == "reflection":
        # at the centers of the outer pixels, or with align_corners=False at their outer edges
        edge = 0 if align_corners else 1
        period = ((length - 1 + edge) * 2).maximum(1)
        taps = taps % period
        taps = (period - taps - edge).where(taps >= length, taps)
    counted = inside if pad_mode == "zeros" else (taps * 0) >= 0
    return taps.maximum(0).minimum(length - 1), counted


# --- an axis -----------------------------------------------------------------------------------------------


def _inverse(number: Value) -> Value:
    """1 / number, rounded: ONNX Runtime replaces 1 / x * y by y / x, which is rounded otherwise."""
    return (0.5 / number) * 2


def _outputs(size: Value) -> Value:
    """The numbers of the output pixels, (blocks, BLOCK) int64; the last block repeats the last one."""
    blocks = (size + (BLOCK - 1)) // BLOCK
    return size.writer.range(0, blocks * BLOCK).minimum(size - 1).reshaped(-1, BLOCK)


def _spans(low: Value, high: Value, length: Value) -> tuple[Value, Value, Value]:
    """Of (blocks, BLOCK) bounds: where each block starts, how long all are, (blocks, 1, count) places."""
    starts = low.reduced("ReduceMin", 1).to(np.int64)
    stops = high.reduced("ReduceMax", 1).to(np.int64)
    count = (stops - starts).reduced("ReduceMax", 0)
    starts = starts.minimum(length - count)
    places = starts.unsqueezed(1, 2) + low.writer.range(0, count)
    return starts, count, places.to(np.float64)


def _weighted(pixels: Value, axis: int, weights: Weights, finish: Callable[[Value], Value]) -> Value:
    """(C, H, W) pixels with an axis made of weighted sums, block by block; `finish` completes a block."""
    writer = pixels.writer
    columns = axis == COLUMNS
    values = weights.values.transposed(0, 2, 1) if columns else weights.values
    blocks = weights.starts.side(0)

    def block(index: Value) -> Value:
        start = weights.starts.take(index)
        part = pixels.sliced((axis, start, start + weights.count)).to(np.float32)
        own = values.take(index)
        return finish(part @ own if columns else own @ part)

    stacked = writer.loop(blocks, block)  # (blocks, C, H, BLOCK) or (blocks, C, BLOCK, W)
    if columns:
        joined = stacked.transposed(1, 2, 0, 3).reshaped(0, 0, -1)
    else:
        joined = stacked.transposed(1, 0, 2, 3).reshaped(pixels.side(0), -1, pixels.side(COLUMNS))
    return joined.sliced((axis, 0, weights.size))


# --- sizes -------------------------------------------------------------------------------------------------


def constant(planes: Value, size: Size) -> Sides:
    """A size that is known."""
    return planes.writer.constant(size[0], np.int64), planes.writer.constant(size[1], np.int64)


def sides(planes: Value) -> Sides:
    """The (height, width) of (C, H, W) planes."""
    return planes.side(ROWS), planes.side(COLUMNS)


def truncated(number: Value) -> Value:
    """int(number)."""
    return number.to(np.int64)


def quotient(number: Value, divisor: Value) -> Value:
    """int(number / divisor) of whole numbers, by float64 as Python does it."""
    return truncated(number.to(np.float64) / divisor.to(np.float64))

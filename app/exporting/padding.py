"""Cutting a picture and continuing it beyond its edges, as ONNX nodes: `photos.resample.crop_or_pad`."""

import numpy as np

from app.exporting.resampling import COLUMNS, ROWS, Sides
from app.exporting.values import Value
from app.photos.resample import PAD_MODES, PadMode


def crop(planes: Value, start: Sides, size: Sides) -> Value:
    """Cut `size` from the (top, left) `start` on, all of which is there."""
    bounds = zip((ROWS, COLUMNS), start, size, strict=True)
    return planes.sliced(*((axis, first, first + length) for axis, first, length in bounds))


def crop_or_pad(planes: Value, start: Sides, size: Sides, pad_mode: PadMode) -> Value:
    """Cut `size` from `start` on, continued as `pad_mode` says where (C, H, W) `planes` end."""
    there = planes.side(ROWS), planes.side(COLUMNS)
    first = start[0].maximum(0), start[1].maximum(0)
    stop = (
        (start[0] + size[0]).minimum(there[0]),
        (start[1] + size[1]).minimum(there[1]),
    )
    planes = planes.sliced((ROWS, first[0], stop[0]), (COLUMNS, first[1], stop[1]))
    before = (0 - start[0]).maximum(0), (0 - start[1]).maximum(0)
    behind = (
        size[0] - planes.side(ROWS) - before[0],
        size[1] - planes.side(COLUMNS) - before[1],
    )
    return pad(planes, before, behind, pad_mode)


def pad(planes: Value, before: Sides, behind: Sides, pad_mode: PadMode) -> Value:
    """Continue (C, H, W) planes by so many rows and columns before and behind."""
    writer = planes.writer
    if pad_mode != "reflection":
        pads = writer.vector([0, *before, 0, *behind])
        return writer.add("Pad", planes, pads, mode=PAD_MODES[pad_mode])
    # ONNX reflects once; a long narrow picture needs more
    for axis, first, last in zip((ROWS, COLUMNS), before, behind, strict=True):
        length = planes.side(axis)
        sides = [
            planes.take(_reflected(planes, start, stop, length), axis)
            for start, stop in ((0 - first, writer.constant(0, np.int64)), (length, length + last))
        ]
        planes = writer.concat([sides[0], planes, sides[1]], axis=axis)
    return planes


def _reflected(planes: Value, start: Value, stop: Value, length: Value) -> Value:
    """Places beyond 0..length-1 as `numpy.pad` reflects them."""
    period = ((length - 1) * 2).maximum(1)
    folded = planes.writer.range(start, stop) % period
    return folded.minimum(period - folded).minimum(length - 1)

"""The steps on the pixels as ONNX nodes, from (C, H, W) numbers to float32 of the same range.

Each computes what the class of the same name in `app.photos` computes, and is tested against it.
"""

import numpy as np

from app.exporting.padding import crop, pad
from app.exporting.resampling import Sides, constant, grid_sample, sides, truncated
from app.exporting.values import Value
from app.photos import fastai_steps as fastai
from app.photos.fastai1_steps import FastaiV1
from app.photos.steps import PixelStep, ResizeMethod


def pixel_nodes(step: PixelStep, planes: Value) -> Value:
    """Write a step from (C, H, W) numbers to float32 of the same range. Raises TypeError."""
    match step:
        case fastai.AffineCoordTfm():
            size = constant(planes, step.size) if step.size else sides(planes)
            shrink = _pre_shrink(sides(planes), size)
            return grid_sample(planes, size, size, shrink, step.mode, step.pad_mode, step.align_corners)
        case fastai.RandomResizedCropGPU():
            return _cropped_on_gpu(step, planes)
        case FastaiV1():
            return _fastai1(step, planes)
    raise TypeError(f"there are no ONNX nodes for {type(step).__name__}")


def _cropped_on_gpu(step: fastai.RandomResizedCropGPU, planes: Value) -> Value:
    height, width = there = sides(planes)
    ratio = width.to(np.float64) / height.to(np.float64)
    high = truncated(width.to(np.float64) / step.ratio[0]).where(ratio < step.ratio[0], height)
    wide = truncated(height.to(np.float64) * step.ratio[1]).where(ratio > step.ratio[1], width)
    cut = (
        truncated(high.to(np.float64) * step.valid_scale),
        truncated(wide.to(np.float64) * step.valid_scale),
    )
    planes = crop(planes, ((there[0] - cut[0]) // 2, (there[1] - cut[1]) // 2), cut)
    if step.size is None:
        return planes.to(np.float32)
    size = constant(planes, step.size)
    return grid_sample(planes, size, size, _pre_shrink(cut, size), step.mode)


def _pre_shrink(source: Sides, target: Sides) -> Value:
    """`fastai_steps.pre_shrink`."""
    return (source[0].to(np.float64) / target[1].to(np.float64)).minimum(source[1].to(np.float64) / 2) / 2


def _fastai1(step: FastaiV1, planes: Value) -> Value:
    """fastai v1's `size=`."""
    size = constant(planes, step.size)
    there = sides(planes)
    target = _fastai1_target(size, there, step.method)
    kept = target if step.method == "pad" else (target[0].minimum(size[0]), target[1].minimum(size[1]))
    ratios = [a.to(np.float64) / b.to(np.float64) for a, b in zip(there, target, strict=True)]
    sampled = grid_sample(planes, target, kept, ratios[0].minimum(ratios[1]) / 2)
    if step.method != "pad":
        return sampled
    pads = [((want - side + 1) // 2).maximum(0) for want, side in zip(size, target, strict=True)]
    padded = pad(sampled, (pads[0], pads[1]), (pads[0], pads[1]), step.pad_mode)
    starts = [(side - want + 1) // 2 for want, side in zip(size, sides(padded), strict=True)]
    return crop(padded, (starts[0], starts[1]), size)


def _fastai1_target(size: Sides, there: Sides, method: ResizeMethod) -> Sides:
    if method == "squish":
        return size
    ratios = [a.to(np.float64) / b.to(np.float64) for a, b in zip(there, size, strict=True)]
    ratio = ratios[0].minimum(ratios[1]) if method == "crop" else ratios[0].maximum(ratios[1])
    rounded = [(side.to(np.float64) / ratio).round().to(np.int64) for side in there]
    return rounded[0], rounded[1]

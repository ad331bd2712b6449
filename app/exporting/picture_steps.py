"""The steps on the picture as ONNX nodes, from (C, H, W) levels to levels.

Each computes what the class of the same name in `app.photos` computes, and is tested against it.
"""

import numpy as np

from app.exporting.padding import crop, crop_or_pad
from app.exporting.resampling import Sides, constant, quotient, resize, sides, truncated
from app.exporting.values import Value
from app.photos import fastai_steps as fastai
from app.photos import torchvision_steps as torchvision
from app.photos.resample import PadMode
from app.photos.steps import PictureStep
from app.types import Size


def picture_nodes(step: PictureStep, planes: Value, *, newest: bool) -> Value:
    """Write a step from (C, H, W) levels to levels. Raises TypeError."""
    match step:
        case fastai.Resize():
            return _resize(planes, constant(planes, step.size), step, newest=newest)
        case fastai.RandomResizedCrop():
            squished = resize(planes, constant(planes, step.squished), step.resample, newest=newest)
            edge = step.extra // 2
            return crop(squished, constant(planes, (edge, edge)), constant(planes, step.size))
        case fastai.CropPad():
            return _center(planes, step.size, step.pad_mode)
        case fastai.RandomCrop():
            return _center(planes, step.size, "zeros")
        case fastai.RatioResize():
            height, width = sides(planes)
            longer = height.maximum(width)
            size = quotient(height * step.max_sz, longer), quotient(width * step.max_sz, longer)
            return _resize(planes, size, fastai.Resize((1, 1), resample=step.resample), newest=newest)
        case torchvision.TorchvisionResize():
            return resize(planes, _torchvision_size(planes, step), step.resample, newest=newest)
        case torchvision.CenterCrop():
            return _torchvision_center(planes, step.size)
    raise TypeError(f"there are no ONNX nodes for {type(step).__name__}")


def _resize(planes: Value, size: Sides, step: fastai.Resize, *, newest: bool) -> Value:
    """fastai's `Resize` to a size that may be computed."""
    if step.method != "squish":
        there = sides(planes)
        ratios = [a.to(np.float64) / b.to(np.float64) for a, b in zip(there, size, strict=True)]
        padded = step.method == "pad"
        scale = ratios[0].maximum(ratios[1]) if padded else ratios[0].minimum(ratios[1])
        cut = truncated(size[0].to(np.float64) * scale), truncated(size[1].to(np.float64) * scale)
        start = (there[0] - cut[0]) // 2, (there[1] - cut[1]) // 2  # towards zero, as int() is
        planes = crop_or_pad(planes, start, cut, step.pad_mode) if padded else crop(planes, start, cut)
    return resize(planes, size, step.resample, newest=newest)


def _center(planes: Value, size: Size, pad_mode: PadMode) -> Value:
    """fastai's `CropPad`."""
    height, width = sides(planes)
    start = _half(height - size[0]).floor(), _half(width - size[1]).floor()
    whole = start[0].to(np.int64), start[1].to(np.int64)
    return crop_or_pad(planes, whole, constant(planes, size), pad_mode)


def _torchvision_center(planes: Value, size: Size) -> Value:
    """torchvision's `CenterCrop`: black before the picture, then the rounding of the cut, to even numbers."""
    starts = []
    for there, wanted in zip(sides(planes), size, strict=True):
        before = (wanted - there).maximum(0) // 2
        starts.append(_half(there.maximum(wanted) - wanted).round().to(np.int64) - before)
    return crop_or_pad(planes, (starts[0], starts[1]), constant(planes, size), "zeros")


def _torchvision_size(planes: Value, step: torchvision.TorchvisionResize) -> Sides:
    """The size that torchvision's `Resize` makes."""
    if isinstance(step.size, tuple):
        return constant(planes, step.size)
    height, width = sides(planes)
    longer = quotient(height.maximum(width) * step.size, height.minimum(width))
    shorter = planes.writer.constant(step.size, np.int64)
    if step.max_size is not None:
        most = planes.writer.constant(step.max_size, np.int64)
        shorter = quotient(shorter * step.max_size, longer).where(longer > most, shorter)
        longer = longer.minimum(most)
    upright = height > width
    return longer.where(upright, shorter), shorter.where(upright, longer)


def _half(number: Value) -> Value:
    return number.to(np.float64) * 0.5

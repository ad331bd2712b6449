"""The numbers of an int8 graph: a checkpoint's weights and the ranges of its activations, quantized.

They are made as ONNX Runtime's own `quantize_static` makes them (min-max ranges, here widened; uint8 between
the layers, int8 for weights, per channel), without the onnx package that it needs.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from app.engines.sessions import bound_session
from app.errors import Int8Unavailable
from app.graphs.graph import EPSILON, Graph, Int8
from app.types import Array, Arrays, Float32, Float64

Ranges = Mapping[str, tuple[float, float]]  # the smallest and the largest number in a tensor

# How much wider than on the photos of the proof the ranges are made: a dozen photos do not show the rarest
# numbers, and a number that is cut off spoils an answer, while wider steps cost little (docs/performance.md).
RANGE_MARGIN: Final = 1.6
LARGEST_BIAS: Final = (2**31 - 1) / 1.0001  # an int32, in steps of the scales of input and weight
NORM: Final = ("weight", "bias", "running_mean", "running_var")


def quantize(graph: Graph, arrays: Arrays, pixels: Iterable[Float32]) -> Arrays:
    """Return the arrays that the int8 companion of a graph binds, calibrated on photos, (3, H, W) each.

    They are the checkpoint's weights in int8, and the scales of the tensors between the layers. Raises
    Int8Unavailable where the graph has no such companion.
    """
    if graph.int8 is None:
        raise Int8Unavailable(f"{graph.architecture} has no graph in int8")
    return _quantized(graph.int8, arrays, _ranges(graph.int8, graph.float32(arrays), pixels))


def _ranges(int8: Int8, weights: Arrays, pixels: Iterable[Float32]) -> Ranges:
    """The smallest and the largest number in each tensor, over all photos."""
    session = bound_session(int8.ranges.read_bytes(), weights, small=True)
    names = [f"{name}_Reduce{end}" for name in int8.tensors for end in ("Min", "Max")]
    rows = [session.run(names, {"pixels": photo[np.newaxis]}) for photo in pixels]
    ends = np.array(rows, np.float64).reshape(len(rows), len(int8.tensors), 2)
    return dict(zip(int8.tensors, zip(ends[..., 0].min(0), ends[..., 1].max(0), strict=True), strict=True))


def _folded(arrays: Arrays, name: str, norm: str) -> tuple[Float64, Float64]:
    """The weight (O, I, h, w) and bias (O,) of a Conv, the BatchNorm behind it taken in: y = scale * (x -
    mean) + bias.
    """
    numbers = {part: arrays[f"{norm}.{part}"].astype(np.float64) for part in NORM}
    scale = numbers["weight"] / np.sqrt(numbers["running_var"] + EPSILON)
    bias = (arrays.get(f"{name}.bias", 0) - numbers["running_mean"]) * scale + numbers["bias"]
    return arrays[f"{name}.weight"] * scale[:, None, None, None], bias


def _quantized(int8: Int8, arrays: Arrays, ranges: Ranges) -> dict[str, Array]:
    """Numbers r as q with r = scale * (q - zero point); ONNX Runtime 1.32, quant_utils.py: 243 and 568."""
    numbers: dict[str, Array] = {}
    scales = {}
    for name, (low, high) in ranges.items():
        wider = 1.0 if name == "pixels" else RANGE_MARGIN  # most photos hold black and white
        low, high = min(low, 0.0) * wider, max(high, 0.0) * wider  # zero, which pads, must be among them
        scales[name] = (high - low) / 255 or 1.0
        numbers[f"{name}_scale"] = np.array(scales[name], np.float32)
        numbers[f"{name}_zero_point"] = np.array(round(-low / scales[name]), np.uint8)
    for name, (norm, read) in int8.convolutions.items():
        weight, bias = _folded(arrays, name, norm)
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        scale = np.maximum(scale, np.abs(bias) / scales[read] / LARGEST_BIAS)  # or the bias would be cut off
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        sums = scales[read] * scale  # of the sums of a Conv
        numbers[f"{name}.weight_scale"] = scale.astype(np.float32)
        steps = np.rint(weight / scale[:, None, None, None])
        numbers[f"{name}.weight_quantized"] = steps.astype(np.int8, "C")  # training may lay channels last
        numbers[f"{name}.bias_quantized_scale"] = sums.astype(np.float32)
        numbers[f"{name}.bias_quantized"] = np.rint(bias / sums).astype(np.int32)
    return numbers

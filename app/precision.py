"""The body in int8, which is quicker, where it agrees with float32 on the photos of the proof.

The numbers of the int8 graph are made as ONNX Runtime's own `quantize_static` makes them (min-max ranges,
here widened; uint8 between the layers, int8 for weights, each channel by itself), without the onnx package
that it needs.
Knows nothing of settings files and requests.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from app.engine import Answer, Engine, bound_session
from app.graphs import Graph, Int8
from app.head import EPSILON
from app.picture import Size

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
Ranges = Mapping[str, tuple[float, float]]  # the smallest and the largest number in a tensor

MAX_MEAN_DIFFERENCE: Final = 0.01  # of a probability, over all photos and classes
# Of the most changed probability of a photo, over all photos: among many classes, of which most are near 0 in
# both, the mean of all says little.
MAX_MEAN_LARGEST: Final = 0.02
# How much wider than on the photos of the proof the ranges are made: a dozen photos do not show the rarest
# numbers, and what is cut off spoils an answer, while wider steps cost little (docs/performance.md).
WIDENED: Final = 1.6
LARGEST_BIAS: Final = (2**31 - 1) / 1.0001  # an int32, in steps of the scales of input and weight
NORM: Final = ("weight", "bias", "running_mean", "running_var")
LEAST_GAIN: Final = 1.25  # times as quick: for less nobody needs other numbers
TIMED: Final = 7  # photos for each of the two


class Precision(Struct, frozen=True):
    """In which numbers the body computes, and why.

    Of `photos` photos int8 gave `flips` another class, not counting those that are unsure in both. The
    probabilities differ by `mean_difference` on average, the most changed one of a photo by
    `mean_largest_difference` on average and `worst_difference` at most. int8 is `gain` times as quick.
    """

    used: Literal["float32", "int8"]
    why: str
    photos: int = 0
    flips: int = 0
    mean_difference: float = 0.0
    mean_largest_difference: float = 0.0
    worst_difference: float = 0.0
    gain: float = 0.0


def compare(
    float32: Sequence[Answer],
    int8: Sequence[Answer],
    gain: float,
    *,
    unsure_below: float = 0.0,
    threshold: float | None = None,
    insist: bool = False,
) -> Precision:
    """How far the answers in int8 are from those in float32 to the same photos.

    An answer is the likeliest class, or with a `threshold` all from there on. `used` is int8 where they agree
    and it is LEAST_GAIN times as quick; to `insist` is not to mind how quick.
    """
    expected, found = (np.stack([answer.probabilities for answer in both]) for both in (float32, int8))
    if threshold is None:
        others = found.argmax(axis=1) != expected.argmax(axis=1)
    else:
        others = ((found >= threshold) != (expected >= threshold)).any(axis=1)
    sure = np.maximum(expected, found).max(axis=1) >= unsure_below  # in one of the two
    flips = int((others & sure).sum())
    differences = np.abs(found - expected)
    each = differences.max(axis=1)
    mean, largest, worst = float(differences.mean()), float(each.mean()), float(each.max())
    agrees = not flips and mean <= MAX_MEAN_DIFFERENCE and largest <= MAX_MEAN_LARGEST
    quicker = gain >= LEAST_GAIN or insist
    verdict = (
        "int8 is too far from float32" if not agrees else "it agrees" if quicker else "int8 is hardly quicker"
    )
    judged = f"{len(found)} photos of the proof"
    if not sure.all():
        judged = f"the {sure.sum()} photos of the proof that are not unsure"
    return Precision(
        "int8" if agrees and quicker else "float32",
        f"{verdict}; {flips} of {judged} get another class, a probability differs "
        f"by {mean:.4f} on average, the most changed one of a photo by {largest:.4f} on average and "
        f"{worst:.4f} at most, and int8 is {gain:.1f} times as quick",
        *(len(found), flips, mean, largest, worst, gain),
    )


def measure_gain(float32: Engine, int8: Engine, size: Size) -> float:
    """How many times as quick int8 is with a photo of (height, width) `size`: of two medians, taken in turn,
    so that what else runs on the machine meets both.
    """
    black = [np.zeros((3, *size), np.float32)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED):
        for engine, its in zip((float32, int8), seconds, strict=True):
            start = time.perf_counter()
            engine.run(black)
            its.append(time.perf_counter() - start)
    return median(seconds[0]) / median(seconds[1])


# --- the numbers of the int8 graph -------------------------------------------------------------------------


def quantise(graph: Graph, int8: Int8, arrays: Arrays, pixels: Iterable[Float32]) -> Arrays:
    """What the graph at `int8.path` binds: a checkpoint's arrays in int8, and the scales of what flows
    between the layers, learnt from photos, (3, H, W) each.
    """
    return _quantised(int8, arrays, _ranges(int8, graph.float32(arrays), pixels))


def _ranges(int8: Int8, weights: Arrays, pixels: Iterable[Float32]) -> Ranges:
    """The smallest and the largest number in each tensor, over all photos."""
    session = bound_session(int8.ranges, weights, small=True)
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


def _quantised(int8: Int8, arrays: Arrays, ranges: Ranges) -> dict[str, npt.NDArray[Any]]:
    """Numbers r as q with r = scale * (q - zero point); ONNX Runtime 1.32, quant_utils.py: 243 and 568."""
    numbers: dict[str, npt.NDArray[Any]] = {}
    scales = {}
    for name, (low, high) in ranges.items():
        wider = 1.0 if name == "pixels" else WIDENED  # black and white are on most photos, and nothing beyond
        low, high = min(low, 0.0) * wider, max(high, 0.0) * wider  # zero, which pads, must be among them
        scales[name] = (high - low) / 255 or 1.0
        numbers[f"{name}_scale"] = np.array(scales[name], np.float32)
        numbers[f"{name}_zero_point"] = np.array(round(-low / scales[name]), np.uint8)
    for name, (norm, read) in int8.convolutions.items():
        weight, bias = _folded(arrays, name, norm)
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        scale = np.maximum(scale, np.abs(bias) / scales[read] / LARGEST_BIAS)  # or the bias would be cut off
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        sums = scales[read] * scale  # of what a Conv adds up
        numbers[f"{name}.weight_scale"] = scale.astype(np.float32)
        steps = np.rint(weight / scale[:, None, None, None])
        numbers[f"{name}.weight_quantized"] = steps.astype(np.int8, "C")  # training may lay channels last
        numbers[f"{name}.bias_quantized_scale"] = sums.astype(np.float32)
        numbers[f"{name}.bias_quantized"] = np.rint(bias / sums).astype(np.int32)
    return numbers

"""The choice of precision: int8 only if the proof agrees with float32 and int8 is faster."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from PIL import Image

from app.engines.contract import Engine, Output
from app.photos.transforms import USUAL_SIZE, Preprocess

MAX_MEAN_DIFFERENCE: Final = 0.01  # of a probability, over all photos and classes
# Of the most changed probability of each photo. With many classes the mean of all says little, since most
# probabilities are near 0 in both.
MAX_MEAN_LARGEST: Final = 0.02
MIN_SPEEDUP: Final = 1.25  # a smaller gain is not worth other numbers
TIMED: Final = 7  # photos for each engine


class Precision(Struct, frozen=True):
    """The precision of the body, and the reason.

    int8 gave `flips` of `photos` photos another class, not counting photos that are unsure in both. The
    probabilities differ by `mean_difference` on average, the most changed one of a photo by
    `mean_largest_difference` on average and `worst_difference` at most. int8 is `gain` times as fast.
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
    float32: Sequence[Output],
    int8: Sequence[Output],
    gain: float,
    *,
    unsure_below: float = 0.0,
    threshold: float | None = None,
    insist: bool = False,
) -> Precision:
    """Compare the outputs in int8 and in float32 for the same photos.

    An answer is the likeliest class, or with a `threshold` all classes from there on. `used` is int8 if the
    answers agree and int8 is MIN_SPEEDUP times as fast; with `insist` the speed does not matter.
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
    faster = gain >= MIN_SPEEDUP or insist
    verdict = (
        "int8 is too far from float32" if not agrees else "it agrees" if faster else "int8 is hardly faster"
    )
    judged = f"{len(found)} photos of the proof"
    if not sure.all():
        judged = f"the {sure.sum()} photos of the proof that are not unsure"
    return Precision(
        "int8" if agrees and faster else "float32",
        f"{verdict}; {flips} of {judged} get another class, a probability differs "
        f"by {mean:.4f} on average, the most changed one of a photo by {largest:.4f} on average and "
        f"{worst:.4f} at most, and int8 is {gain:.1f} times as fast",
        *(len(found), flips, mean, largest, worst, gain),
    )


def measure_gain(float32: Engine, int8: Engine, preprocess: Preprocess) -> float:
    """Return how many times faster int8 computes one photo: the ratio of two medians.

    The engines take turns, so that other load on the machine meets both.
    """
    runs = [engine.bind(preprocess)[1] for engine in (float32, int8)]
    height, width = preprocess.size or USUAL_SIZE
    black = [preprocess(Image.new("RGB", (width, height)))]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED):
        for run, its in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(black)
            its.append(time.perf_counter() - start)
    return median(seconds[0]) / median(seconds[1])

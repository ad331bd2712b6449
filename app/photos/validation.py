"""The steps of fastai v2's transforms at validation, and which of them change nothing.

A transform is a name with arguments, as a notebook has it. Orders and lines are of fastai 2.8.12:
vision/augment.py, data/transforms.py, data/block.py:69 (merging) and fasttransform (sorting).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast, get_args

from msgspec import Struct

from app.photos.fastai_steps import (
    AffineCoordTfm,
    CropPad,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
)
from app.photos.resample import FILTERS, Filter, Mode, PadMode
from app.photos.steps import ResizeMethod
from app.photos.transforms import TRIED, Preprocess, Statistics, Step
from app.types import Size

MAX_SIDE: Final = 4096
MOST: Final = 1e6  # of the arguments of augmentations

# Of each transform: its order in a pipeline, and its parameters.
PICTURE: Final = {
    "CropPad": (0, "size pad_mode"),
    "OldRandomCrop": (0, "size pad_mode"),
    "FlipItem": (0, "p"),
    "DihedralItem": (0, "p nm before_call"),
    "Resize": (1, "size method pad_mode resamples"),
    "RandomResizedCrop": (1, "size min_scale ratio resamples val_xtra max_scale"),
    "RandomCrop": (1, "size"),
    "RatioResize": (1, "max_sz resamples"),
    "ToTensor": (5, ""),
}
AFFINE: Final = {
    "AffineCoordTfm": "aff_fs coord_fs size mode pad_mode mode_mask align_corners",
    "Flip": "p draw size mode pad_mode align_corners batch",
    "Dihedral": "p draw size mode pad_mode batch align_corners",
    "Rotate": "max_deg p draw size mode pad_mode align_corners batch",
    "Zoom": "min_zoom max_zoom p draw draw_x draw_y size mode pad_mode batch align_corners",
    "Warp": "magnitude p draw_x draw_y size mode pad_mode batch align_corners",
    "DeterministicFlip": "size mode pad_mode align_corners",
    "DeterministicDihedral": "size mode pad_mode align_corners",
}
TRAINING: Final = {
    "Brightness": (40, "max_lighting p draw batch"),
    "Contrast": (40, "max_lighting p draw batch"),
    "Saturation": (40, "max_lighting p draw batch"),
    "Hue": (40, "max_hue p draw batch"),
    "RandomErasing": (100, "p sl sh min_aspect max_count"),
}
PIXELS: Final = {
    "IntToFloatTensor": (10, "div div_mask"),
    **{name: (30, parameters) for name, parameters in AFFINE.items()},
    "RandomResizedCropGPU": (30, "size min_scale ratio mode valid_scale max_scale mode_mask"),
    **TRAINING,
    "Normalize": (99, "mean std axes"),
}
COMMON: Final = ("p", "nm", "before_call", "split_idx", "order")  # of every transform


class Transform(Struct, frozen=True):
    """A transform with the arguments that it was made with, and its place in a text, such as "line 1"."""

    name: str
    arguments: Mapping[str, Any]
    place: str = ""

    @property
    def order(self) -> int:
        """Its place in a pipeline: the smaller comes first."""
        return int(self.arguments.get("order", (PICTURE | PIXELS)[self.name][0]))


@contextmanager
def placed(transform: Transform) -> Iterator[None]:
    """Say the transform and its place before the phrase of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{transform.place}{transform.name} cannot be repeated: {error}") from error


def merge(transforms: Iterable[Transform]) -> list[Transform]:
    """As a DataBlock does: of one class the last, in the place of the first; then sorted by order."""
    last = {transform.name: transform for transform in transforms}
    return sorted(last.values(), key=lambda transform: transform.order)


def read_transforms(
    items: Sequence[Transform], batches: Sequence[Transform]
) -> tuple[tuple[Step, ...], Statistics | None]:
    """The steps of a sorted pipeline of items and one of batches, and the statistics of Normalize.

    Raises ValueError with a phrase on the unsupported part.
    """
    steps: list[Step] = []
    for transform in items:
        with placed(transform):
            if transform.name not in PICTURE:
                raise ValueError("fastai itself cannot use it in item_tfms")
            if transform.order < PICTURE["ToTensor"][0] and (step := read_transform(transform)):
                steps.append(step)
    statistics, scale = None, 1.0
    for transform in batches:
        with placed(transform):
            if transform.name == "Normalize":
                statistics = read_statistics(transform)
            elif transform.name == "IntToFloatTensor":
                scale = _number(transform.arguments, "div", 255, 1e-3, 1e6) / 255
            elif transform.name in PICTURE:
                pass  # fastai calls it for pictures alone, and these are pixels
            elif (step := read_transform(transform)) and not _idle(step, steps):
                steps.append(step)
    return tuple(steps), _scaled(statistics, scale)


def _scaled(statistics: Statistics | None, scale: float) -> Statistics | None:
    """The statistics, of pixels in 0..1, for a Normalize of pixels that are divided by more than 255."""
    if scale == 1:
        return statistics
    mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
    return tuple(scale * number for number in mean), tuple(scale * number for number in std)


def _idle(step: Step, before: Sequence[Step]) -> bool:
    """Whether a step changes no photo that the steps before it have sized."""
    sizes = {Preprocess(tuple(before)).shown(*tried)[1] for tried in TRIED}
    return isinstance(step, AffineCoordTfm) and not any(map(step.changes, sizes))


def read_transform(transform: Transform) -> Step | None:  # noqa: C901  a table in the form of cases
    """The step that a transform is at validation; None where it changes nothing. Raises ValueError."""
    name, given = transform.name, transform.arguments
    if given.get("split_idx") == 0 and name not in AFFINE:
        return None
    match name:
        case "Resize":
            return Resize(
                _size(given),
                cast(ResizeMethod, _choice(given, "method", get_args(ResizeMethod), "crop")),
                _pad_mode(given, "reflection"),
                _filter(given),
            )
        case "RandomResizedCrop":
            return RandomResizedCrop(_size(given), _number(given, "val_xtra", 0.14, 0, 4), _filter(given))
        case "CropPad" | "OldRandomCrop":
            return CropPad(_size(given), _pad_mode(given, "zeros"))
        case "RandomCrop":
            return RandomCrop(_size(given))
        case "RatioResize":
            return RatioResize(_side(given.get("max_sz"), "max_sz of RatioResize"), _filter(given))
        case "RandomResizedCropGPU":
            ratio = given.get("ratio", (3 / 4, 4 / 3))
            if not (_numbers(ratio, 2) and 0 < ratio[0] <= ratio[1]):
                raise ValueError(
                    f"its ratio is {ratio!r}; two numbers over 0 were expected, the smaller first"
                )
            return RandomResizedCropGPU(
                _size(given) if given.get("size") is not None else None,
                (float(ratio[0]), float(ratio[1])),
                _mode(given),
                _number(given, "valid_scale", 1.0, 0.01, 1),
            )
        case _ if name in AFFINE:
            return _affine(transform)
        case _ if name in PICTURE or name in PIXELS:
            return None
    raise ValueError("its effect is not known")


def read_statistics(transform: Transform) -> Statistics:
    """The mean and the standard deviation of a Normalize, of pixels in 0..1. Raises ValueError."""
    mean, std = (transform.arguments.get(name) for name in ("mean", "std"))
    if mean is None or std is None:
        raise ValueError(
            "it takes its statistics from the training photos; write Normalize.from_stats(mean, "
            "std) with those of learn.dls.valid.after_batch.normalize"
        )
    mean, std = ([numbers] if isinstance(numbers, int | float) else numbers for numbers in (mean, std))
    if not any(_numbers(mean, count) and _numbers(std, count) for count in (1, 3)) or min(std) <= 0:
        raise ValueError(
            f"its mean is {mean!r} and its std {std!r}; numbers for three channels or one were expected, and "
            "a std over 0"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _affine(transform: Transform) -> Step | None:
    """With a size it resamples; without one it is hardly ever more than the identity, up to rounding."""
    given = transform.arguments
    # the two Deterministic ones take a size and do not hand it on (augment.py:640, 700)
    unsized = given.get("size") is None or transform.name.startswith("Deterministic")
    # AffineCoordTfm's own default is None, which torch takes for False
    align_corners = given.get("align_corners", transform.name != "AffineCoordTfm")
    size = None if unsized else _size(given)
    return AffineCoordTfm(size, _mode(given), _pad_mode(given, "reflection"), bool(align_corners))


def augmented(arguments: Mapping[str, Any]) -> list[Transform]:
    """What `aug_transforms` makes (augment.py:1240), of which only the first affine one keeps its size.

    Raises ValueError.
    """
    extra = arguments.get("xtra_tfms") or ()
    extra = list(extra) if isinstance(extra, list | tuple) else [extra]
    if not all(isinstance(transform, Transform) for transform in extra):
        raise ValueError(f"its xtra_tfms are {arguments['xtra_tfms']!r}; transforms were expected")
    mult, warp, rotate, min_zoom, max_zoom, min_scale = (
        _number(arguments, name, default, -MOST, MOST)
        for name, default in (
            ("mult", 1),
            ("max_warp", 0.2),
            ("max_rotate", 10),
            ("min_zoom", 1),
            ("max_zoom", 1.1),
            ("min_scale", 1),
        )
    )
    shared = {key: arguments[key] for key in ("mode", "pad_mode", "align_corners") if key in arguments}
    if min_scale == 1 and arguments.get("size") is not None:
        shared["size"] = arguments["size"]
    if min_scale != 1:
        cropped = {"size": arguments.get("size"), "ratio": (1, 1)}
        extra = [Transform("RandomResizedCropGPU", cropped), *extra]
    flip = "Dihedral" if arguments.get("flip_vert", False) else "Flip"
    made = {
        flip: arguments.get("do_flip", True),
        "Warp": warp * mult,
        "Rotate": rotate * mult,
        "Zoom": min_zoom < 1 or max_zoom > 1,
    }
    affine = [Transform(name, shared) for name, wanted in made.items() if wanted]
    affine += [t for t in extra if t.name in AFFINE]
    lighting = [t for t in extra if t.name in ("Brightness", "Contrast", "Saturation")]
    rest = [t for t in extra if t not in affine and t not in lighting]
    return affine[:1] + lighting[:1] + rest


# --- arguments ---------------------------------------------------------------------------------------------


def _size(given: Mapping[str, Any]) -> Size:
    return read_size(given.get("size"))


def read_size(size: Any) -> Size:
    """(height, width) of a side or of both. Raises ValueError."""
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ValueError(f"its size is {size!r}; a side or (height, width) was expected")
    return _side(sides[0], "size"), _side(sides[1], "size")


def _side(side: Any, name: str) -> int:
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MAX_SIDE:
        raise ValueError(f"its {name} is {side!r}; 1 to {MAX_SIDE} pixels were expected")
    return side


def _filter(given: Mapping[str, Any]) -> Filter:
    """The filter for pictures, of a pair with that for masks."""
    resamples = given.get("resamples", 2)
    first = resamples[0] if isinstance(resamples, list | tuple) and resamples else resamples
    if not isinstance(first, int) or not 0 <= first < len(FILTERS):
        raise ValueError(f"its resamples are {resamples!r}; filters of Pillow, 0 to 5, were expected")
    return FILTERS[first]


def _choice(given: Mapping[str, Any], name: str, choices: Sequence[str], default: str) -> str:
    value = given.get(name, default)
    if value not in choices:
        raise ValueError(f"its {name} is {value!r}; {', '.join(choices)} are reproduced")
    return str(value)


def _pad_mode(given: Mapping[str, Any], default: PadMode) -> PadMode:
    return cast(PadMode, _choice(given, "pad_mode", get_args(PadMode), default))


def _mode(given: Mapping[str, Any]) -> Mode:
    return cast(Mode, _choice(given, "mode", get_args(Mode), "bilinear"))


def _number(given: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = given.get(name, default)
    if not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"its {name} is {value!r}; {least} to {most} was expected")
    return float(value)


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    )

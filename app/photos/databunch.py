"""The steps of fastai v1 at validation, by the arguments of its databunch."""

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from app.photos.fastai1_steps import FastaiV1
from app.photos.resample import PadMode
from app.photos.steps import ResizeMethod
from app.photos.transforms import Step
from app.photos.validation import Transform, read_size

METHODS: Final = {1: "crop", 2: "pad", 3: "squish", 4: "no"}  # 1.0.50 vision/image.py:14


def read_databunch(given: Mapping[str, Any]) -> tuple[Step, ...]:
    """The step of `ds_tfms`, `size`, `resize_method`, `padding_mode`, `mode` and `mult` (vision/image.py:96).

    None at all where the photos keep their size. Raises ValueError with a phrase on the unsupported part.
    """
    _check_transforms(given.get("ds_tfms"))
    size, method = given.get("size"), given.get("resize_method")
    method = METHODS.get(method, method) if isinstance(method, int) else method
    if method is None:  # image.py:105
        method = "squish" if isinstance(size, list | tuple) else "crop"
    if size is None or method == "no":
        return ()
    sides = size[-2:] if isinstance(size, list | tuple) else size
    height, width = read_size(sides)
    if (mult := given.get("mult")) is not None:
        if not isinstance(mult, int) or mult < 1:
            raise ValueError(f"its mult is {mult!r}")
        height, width = (int(side / mult + 0.5) * mult for side in (height, width))  # image.py:580
    pad_mode, mode = given.get("padding_mode", "reflection"), given.get("mode", "bilinear")
    if method not in get_args(ResizeMethod) or pad_mode not in get_args(PadMode):
        raise ValueError(f"its resize_method is {method!r} and its padding_mode {pad_mode!r}")
    if mode != "bilinear":  # torch 1.0 rounds the positions of nearest in a way of its own
        raise ValueError(f"its mode is {mode!r}")
    return (FastaiV1((height, width), cast(ResizeMethod, method), cast(PadMode, pad_mode)),)


def _check_transforms(transforms: Any) -> None:
    """Raise ValueError unless the second of the two lists, that for validation, only crops the center."""
    if transforms is None or (isinstance(transforms, Transform) and transforms.name == "get_transforms"):
        return
    if not isinstance(transforms, list | tuple) or (transforms and len(transforms) != 2):
        raise ValueError("its ds_tfms are not get_transforms() or two lists")
    after = (transforms[1] or ()) if transforms else ()
    for transform in after if isinstance(after, list | tuple) else [after]:
        name = transform.name if isinstance(transform, Transform) else repr(transform)
        elsewhere = isinstance(transform, Transform) and any(
            transform.arguments.get(place, 0.5) != 0.5 for place in ("row_pct", "col_pct")
        )
        if name != "crop_pad" or elsewhere:
            raise ValueError(f"it uses v1's {name} at validation, which is not reproduced")

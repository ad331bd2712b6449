"""The transforms in an exported learner, written out as its notebook wrote them.

Reads the records that `unpickler` makes, and gives the settings `item_tfms`, `batch_tfms` and `ds_tfms`. What
they mean is read elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from app.checkpoints.module_tree import array, values
from app.checkpoints.records import Call, Global, Tensor, attribute
from app.types import Array

Numbers = Callable[[Tensor], Array]  # the array that a tensor describes

# v2's transforms by the attributes that matter at validation (fastai 2.8.12 vision/augment.py).
ATTRIBUTES: Final = {
    "Resize": "size method pad_mode resamples",
    "RandomResizedCrop": "size val_xtra resamples",
    "CropPad": "size pad_mode",
    "OldRandomCrop": "size pad_mode",
    "RandomCrop": "size",
    "RatioResize": "max_sz resamples",
    "RandomResizedCropGPU": "size ratio mode valid_scale",
    "IntToFloatTensor": "div",
}
FLIPPED: Final = ("Resize", "RandomResizedCrop", "CropPad", "OldRandomCrop", "RandomCrop")  # (width, height)
DEFAULTS: Final = {
    "method": "crop", "val_xtra": 0.14, "resamples": (2, 0), "mode": "bilinear", "valid_scale": 1.0,
    "div": 255.0, "padding_mode": "reflection",
}  # fmt: skip
AFFINE: Final = "size mode pad_mode align_corners"
METHODS: Final = {1: "CROP", 2: "PAD", 3: "SQUISH", 4: "NO"}  # v1's ResizeMethod


def read_transforms(
    items: Sequence[Call], batches: Sequence[Call], numbers: Numbers
) -> tuple[dict[str, Any], list[str]]:
    """The settings that a v2 learner's transforms are, and a phrase for each that cannot be said by them."""
    known: dict[str, Any] = {}
    unserved: list[str] = []
    normalizing = [transform for transform in batches if transform.name == "Normalize"]
    for setting, transforms in (("item_tfms", items), ("batch_tfms", batches)):
        written = []
        for transform in transforms:
            try:
                written.append(
                    _normalize(normalizing, numbers) if transform in normalizing[-1:] else _written(transform)
                )
            except ValueError as error:
                unserved.append(str(error))
        known[setting] = f"[{', '.join(filter(None, written))}]"
        names = [text.partition("(")[0] for text in written if text]
        unserved += [f"it uses {name} twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if not normalizing:
        known["mean"], known["std"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return known, unserved


def read_databunch(
    arguments: Mapping[str, Any],
    transforms: Sequence[Any],
    normalize: Mapping[str, Any] | None,
    numbers: Numbers,
) -> tuple[dict[str, Any], list[str]]:
    """The settings that v1's arguments of a databunch are, and a phrase for the rest."""
    unserved = _fastai1_transforms(transforms)
    written = ["get_transforms()"]
    for name in ("size", "resize_method", "padding_mode", "mode", "mult"):
        try:
            value = _literal(arguments.get(name))
        except ValueError:
            unserved.append(f"its {name} is not understood")
            continue
        if name == "resize_method" and value in METHODS:
            written.append(f"resize_method=ResizeMethod.{METHODS[value]}")
        elif name == "size" or value not in (None, DEFAULTS.get(name)):
            written.append(f"{name}={value!r}")
    known: dict[str, Any] = {"ds_tfms": ", ".join(written), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if normalize is not None:
        try:
            known["mean"], known["std"] = (_numbers(normalize.get(name), numbers) for name in ("mean", "std"))
        except ValueError as error:
            unserved.append(str(error))
    return known, unserved


def _normalize(transforms: Sequence[Call], numbers: Numbers) -> str:
    """The one Normalize that does what several do in turn. Raises ValueError."""
    mean, std = np.zeros(1), np.ones(1)
    for transform in transforms:
        mine = (np.array(_numbers(transform.get(key), numbers)) for key in ("mean", "std"))
        mean, std = (mean + std * next(mine)), std * next(mine)
    texts = (f"[{', '.join(repr(float(f'{x:.9g}')) for x in values)}]" for values in (mean, std))
    return f"Normalize.from_stats({', '.join(texts)})"


def _written(transform: Call) -> str:
    """A transform as a call; empty where it changes nothing. Raises ValueError."""
    name = transform.name
    if name == "Transform" and transform.get("_name") == "noop":
        return ""
    if not str(transform.callee).startswith("fastai"):
        raise ValueError(f"it uses {_own_name(transform)}, which is not reproduced")
    state = transform.state if isinstance(transform.state, dict) else {}
    attributes = AFFINE if "coord_fs" in state else ATTRIBUTES.get(name, "")
    if name in ("Normalize", "ToTensor"):  # which stands last, and between the two lists
        return ""
    found = {key: _literal(state[key]) for key in attributes.split() if key in state}
    if name in FLIPPED and isinstance(found.get("size"), tuple):
        found["size"] = found["size"][::-1]
    # fastai 2.0 keeps the filter alone
    if "resamples" in attributes and "resamples" not in found and "mode" in state:
        found["resamples"] = (_literal(state["mode"]), 0)
    more = {
        key: value for key, value in found.items() if key == "align_corners" or value != DEFAULTS.get(key)
    }
    if name == "IntToFloatTensor" and not more:
        return ""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in more.items())})"


def _own_name(transform: Call) -> str:
    """The name of a transform that a notebook defines: of its function, or of its class."""
    made = (
        transform.callee.arguments if isinstance(transform.callee, Call) else ()
    )  # by cloudpickle, with a name
    named = (name for name in (transform.get("_name"), *made) if isinstance(name, str))
    return next(named, str(transform.callee))[:100]


def _literal(value: Any) -> Any:
    """A number, a text, None, or a tuple of them; enumerations are their numbers. Raises ValueError."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Call(callee=Global(name="scalar"), arguments=(dtype, data)):
            return array(dtype, data)[0]
        case Call(callee=Global(name="Resampling" | "ResizeMethod"), arguments=(int(number),)):
            return number
    if found := values(value):
        return tuple(_literal(item) for item in found)
    raise ValueError(f"it has {value}, which is not understood")


def _numbers(tensor: Any, numbers: Numbers) -> tuple[float, ...]:
    """The mean or standard deviation of a Normalize, as short as float32 allows. Raises ValueError."""
    found = numbers(tensor).ravel() if isinstance(tensor, Tensor) else np.empty(0)
    if len(found) not in (1, 3):
        raise ValueError("its Normalize is not one of three channels, or of one")
    return tuple(float(str(number)) for number in found)


def _fastai1_transforms(transforms: Sequence[Any]) -> list[str]:
    """Name the transforms at validation other than the center crop of `get_transforms()`."""
    unserved = []
    for transform in transforms:
        function = attribute(attribute(transform, "tfm"), "func")
        name = function.name.lstrip("_") if isinstance(function, Global) else ""
        chosen = attribute(transform, "kwargs") or {}
        if name not in ("", "crop_pad") or any(
            chosen.get(place, 0.5) != 0.5 for place in ("row_pct", "col_pct")
        ):
            unserved.append(f"it uses v1's {name} at validation, which is not reproduced")
    return unserved

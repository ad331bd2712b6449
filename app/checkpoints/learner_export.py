"""The facts in a learner that was saved whole: the module tree, the classes, the transforms, the loss.

Reads the records that `unpickler` makes of `learn.export()` (fastai v1 and v2) and of `torch.save(model)`.
Gives them by the names of the settings. Knows nothing of files, and runs nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import numpy as np
from msgspec import Struct

from app.checkpoints.foreign import SAVE_AGAIN
from app.checkpoints.module_tree import array, is_module, state_dict, values
from app.checkpoints.records import Call, Global, Tensor
from app.checkpoints.task import ELSEWHERE
from app.checkpoints.weights import unwrapped_module
from app.errors import CheckpointError, NotAClassifier
from app.types import Array

Numbers = Callable[[Tensor], Array]  # the array that a tensor describes

MODELS: Final = (
    "model",
    "ema",
    "net",
    "network",
    "classifier",
)  # names of a network in what is saved with it
MAX_MAPS: Final = 100  # of class names: a learner has one a target
BILINEAR: Final = 2  # PIL.Image.Resampling
# fastai's and torch's losses by the activation of `predict`; the others are not of classifiers.
SOFTMAX: Final = frozenset(
    "CrossEntropyLossFlat CrossEntropyLoss LabelSmoothingCrossEntropyFlat LabelSmoothingCrossEntropy "
    "CrossEntropyFlat FocalLossFlat FocalLoss cross_entropy".split()
)
SIGMOID: Final = frozenset(
    "BCEWithLogitsLossFlat BCEWithLogitsFlat BCEWithLogitsLoss BCELossFlat BCELoss "
    "binary_cross_entropy_with_logits".split()
)
REGRESSION: Final = frozenset(
    "MSELossFlat MSELoss L1LossFlat L1Loss SmoothL1Loss HuberLoss mse_loss l1_loss smooth_l1_loss".split()
)
# The targets of v2 and v1 that are not classes of a photo, by the classes in the datasets.
TARGETS: Final = {
    "ReadTabBatch": "rows of a table (tabular_learner, collab_learner)",
    "PointScaler": "points (PointBlock)",
    "BBoxLabeler": "boxes (BBoxBlock)",
    "AddMaskCodes": "masks (MaskBlock)",
    "RegressionSetup": "numbers (RegressionBlock)",
    "Numericalize": "texts (TextBlock)",
    "FloatList": "numbers (FloatList)",
    "PointsItemList": "points (PointsItemList)",
    "SegmentationLabelList": "masks (SegmentationLabelList)",
    "ObjectCategoryList": "boxes (ObjectCategoryList)",
    "ImageList": "pictures (ImageList)",
    "TextList": "texts (TextList)",
}
# v2 transforms that change no pixel of a photo at validation, or that are understood by themselves.
NEUTRAL: Final = frozenset("ToTensor IntToFloatTensor Resize RandomResizedCrop Normalize".split())
NONE: Final = (0.0, 0.0, 0.0)
ONE: Final = (1.0, 1.0, 1.0)


class Export(Struct, frozen=True):
    """A learner or model that was saved whole.

    `writer` names the function that wrote it; `module` is its network. `known` are settings that the file
    decides, by name. `unserved` has a phrase for each thing that is not reproduced here.
    """

    writer: str
    module: Call
    known: Mapping[str, Any]
    unserved: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network, by name."""
        return state_dict(self.module)


def find_module(tree: Any) -> Call | None:
    """Return the network in the object of a pickle: the object, or its entry or attribute of that name."""
    entries = tree if isinstance(tree, dict) else tree.state if isinstance(tree, Call) else {}
    found = [tree, *(entries.get(name) for name in MODELS)] if isinstance(entries, dict) else [tree]
    return next((unwrapped_module(value) for value in found if is_module(value)), None)


def read_export(tree: Any, numbers: Numbers) -> Export | None:
    """Read the export in the object of a pickle; None for anything else, such as a state dict.

    Raises CheckpointError for v1's `data.export`, which has no weights, and NotAClassifier for learners of
    other targets than the classes of photos.
    """
    module = find_module(tree)
    match tree:
        case Call() if module and is_module(tree):
            return Export("torch.save(model)", module, {})
        case Call() if module:
            return _fastai2(tree, module, numbers)
        case {"data": dict() as data} if module:
            return _fastai1(tree, module, data, numbers)
        case dict() if module:
            return Export("torch.save of a dict with the model", module, {})
        case {"x_cls": _, "y_proc": processors}:
            names = ", ".join(_fastai1_classes(processors))
            raise CheckpointError(
                f"The file is a data.export of fastai v1: it holds the classes ({names[:200]}), but no "
                "weights. Deploy what learn.export() writes, or learn.save('stage-2')."
            )
    return None


# --- fastai v2 ---------------------------------------------------------------------------------------------


def _fastai2(learner: Call, module: Call, numbers: Numbers) -> Export:
    """Read a v2 `Learner`: the transforms of its validation loader, the vocabulary, the loss."""
    loaders = values(_attribute(learner.get("dls"), "loaders"))
    if not loaders or not isinstance(loaders[-1], Call):
        return Export("fastai v2 learn.export", module, {}, ("it has no dataloaders",))
    items = _transforms(loaders[-1].get("after_item"))
    batches = _transforms(loaders[-1].get("after_batch"))
    dataset = loaders[-1].get("dataset")
    _check_targets([t.name for t in items + batches], dataset)
    known: dict[str, Any] = {}
    unserved = _fastai2_sizes(items, batches, known)
    unserved += _statistics([t for t in batches if t.name == "Normalize"], known, numbers)
    maps = islice(_all(dataset, "CategoryMap"), MAX_MAPS)
    vocabularies = {_names(found.get("items")) for found in maps if "items" in _state(found)}
    if len(vocabularies) == 1:
        (known["classes"],) = vocabularies
    elif vocabularies:
        raise _other_target(f"{len(vocabularies)} targets with classes of their own")
    if any(_all(dataset, "PILImageBW")):
        unserved.append("its pictures are gray (PILImageBW)")
    _loss(learner.get("loss_func"), known, any(_all(dataset, "MultiCategorize")))
    return Export("fastai v2 learn.export", module, known, tuple(unserved))


def _transforms(pipeline: Any) -> list[Call]:
    """Return the transforms of a Pipeline that run at validation, in order; those with split_idx 0 do not.

    The exception are transforms of coordinates: their split_idx is that of the last use, and they run always.
    """
    found = [transform for transform in values(_attribute(pipeline, "fs")) if isinstance(transform, Call)]
    return [t for t in found if t.get("split_idx") != 0 or "coord_fs" in _state(t)]


def _fastai2_sizes(items: list[Call], batches: list[Call], known: dict[str, Any]) -> list[str]:
    """Find the pipeline that the transforms are, and its sizes."""
    unserved = [
        f"it uses {t.name}, which is not reproduced" for t in items + batches
        if t.name not in NEUTRAL and "coord_fs" not in _state(t) and "space_fs" not in _state(t)
    ]  # fmt: skip
    final = [_pair(t.get("size")) for t in batches if "coord_fs" in _state(t) and t.get("size") is not None]
    match [t for t in items if t.name in ("Resize", "RandomResizedCrop")], final:
        case [Call() as resize], _ if resize.name == "Resize":
            known["resize_method"], known["pad_mode"] = str(resize.get("method")), str(resize.get("pad_mode"))
            known["pipeline"] = "presize" if final else "resize"
            # fastai keeps the size of its Resize as (width, height)
            known["presize" if final else "image_size"] = _pair(resize.get("size"))[::-1]
            if final:
                known["image_size"] = final[-1]
            if _resampling(resize) != BILINEAR:
                unserved.append("its Resize resamples otherwise than bilinearly")
        case [Call() as crop], []:
            known["pipeline"], known["image_size"] = "random_resized_crop", _pair(crop.get("size"))[::-1]
            known["val_xtra"] = float(crop.get("val_xtra", 0.14))
        case found, _:
            names = " and ".join([t.name for t in found] + ["aug_transforms(size=...)"] * len(final))
            unserved.append(f"its photos are sized by {names or 'no Resize at all'}")
    return unserved


def _resampling(resize: Call) -> Any:
    """Return the Pillow filter of a Resize: its `mode`, from `resamples`, which fastai 2.0 does not keep."""
    first = resize.get("mode", BILINEAR)
    return first.arguments[0] if isinstance(first, Call) and first.arguments else first


# --- fastai v1 ---------------------------------------------------------------------------------------------


def _fastai1(tree: Mapping[str, Any], module: Call, data: Mapping[str, Any], numbers: Numbers) -> Export:
    """Read v1's `learn.export()` (1.0.50 basic_train.py:241): the model, and the validation set's state."""
    for side in ("y_cls", "x_cls"):
        name = str(data.get(side, "")).rpartition(".")[2]
        if name in TARGETS and (side, name) != ("x_cls", "ImageList"):
            raise _other_target(TARGETS[name])
    known: dict[str, Any] = {"pipeline": "fastai1"}
    unserved: list[str] = []
    if names := _fastai1_classes(data.get("y_proc")):
        known["classes"] = names
    arguments = data["tfmargs"] if isinstance(data.get("tfmargs"), dict) else {}
    size, method = arguments.get("size"), arguments.get("resize_method")
    if size is None:
        unserved.append("it does not size its photos (no size= in its transform or databunch)")
    else:
        known["image_size"] = _pair(size)
        # ResizeMethod is an IntEnum: CROP 1, PAD 2, SQUISH 3, NO 4; without one a pair of sides is squished
        # to
        chosen = method.arguments[0] if isinstance(method, Call) else 1 if isinstance(size, int) else 3
        known["resize_method"] = {1: "crop", 2: "pad", 3: "squish"}.get(chosen, "no resizing")
        if chosen not in (1, 3):
            found = known.pop("resize_method")
            unserved.append(f"it uses v1's resize_method {found}, which is not reproduced")
        elif chosen == 1 and not any(_all(data.get("tfms"), "TfmCrop")):
            unserved.append("its photos are not cropped to one size (no ds_tfms=get_transforms())")
    unserved += _fastai1_transforms(values(data.get("tfms")))
    given = [data["normalize"]] if isinstance(data.get("normalize"), dict) else []
    unserved += _statistics([Call(Global("", "Normalize"), (), state) for state in given], known, numbers)
    _loss(tree.get("loss_func"), known, str(data.get("y_cls", "")).endswith(".MultiCategoryList"))
    return Export("fastai v1 learn.export", module, known, tuple(unserved))


def _fastai1_transforms(transforms: list[Any]) -> list[str]:
    """Name the transforms at validation other than the center crop of `get_transforms()`."""
    unserved = []
    for transform in transforms:
        function = _attribute(_attribute(transform, "tfm"), "func")
        name = function.name.lstrip("_") if isinstance(function, Global) else ""
        chosen = _attribute(transform, "kwargs") or {}
        if name not in ("", "crop_pad") or any(
            chosen.get(place, 0.5) != 0.5 for place in ("row_pct", "col_pct")
        ):
            unserved.append(f"it uses v1's {name} at validation, which is not reproduced")
    return unserved


def _fastai1_classes(processors: Any) -> tuple[str, ...]:
    for processor in values(processors) or [processors]:
        if isinstance(processor, Call) and (names := _names(processor.get("classes"))):
            return names
    return ()


# --- both --------------------------------------------------------------------------------------------------


def _statistics(normalizes: list[Call], known: dict[str, Any], numbers: Numbers) -> list[str]:
    """Read mean and std of the Normalize, or of none."""
    if not normalizes:
        known["mean"], known["std"] = NONE, ONE
        return []
    found = {name: normalizes[0].get(name) for name in ("mean", "std")}
    for name, tensor in found.items():
        values = numbers(tensor).ravel() if isinstance(tensor, Tensor) else np.empty(0)
        if len(values) != 3 or len(normalizes) > 1:
            return ["its Normalize is not one of three channels"]
        known[name] = tuple(float(value) for value in values)
    return []


def _loss(loss: Any, known: dict[str, Any], several: bool) -> None:
    """Choose softmax or sigmoid. With a loss that is not known, `several` labels a photo tell.

    Raises NotAClassifier for a loss of numbers.
    """
    names = {x.name for x in (loss, _attribute(loss, "func")) if isinstance(x, Call | Global)}
    if names & SIGMOID:
        known["multi_label"] = True
        if isinstance(threshold := _attribute(loss, "thresh"), float):
            known["threshold"] = threshold
    elif names & SOFTMAX:
        known["multi_label"] = False
    elif names & REGRESSION:
        raise _other_target(f"numbers (its loss is {', '.join(sorted(names))})")
    elif several:
        known["multi_label"] = True


def _check_targets(transforms: list[str], dataset: Any) -> None:
    """Raise NotAClassifier where a v2 learner has other targets than classes."""
    found = {call.name for call in _all(dataset)}.union(transforms)
    for name in TARGETS.keys() & found:
        raise _other_target(TARGETS[name])


def _other_target(target: str) -> NotAClassifier:
    return NotAClassifier(
        f"The file is a learner for {target}, but this server gives photos classes. {ELSEWHERE}."
    )


def _all(root: Any, *names: str) -> Iterator[Call]:
    """Find every object, and every mention, of some classes or of any, below `root`: breadth first."""
    seen, waiting = set(), [root]
    for value in waiting:
        if isinstance(value, Call | dict | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
        match value:
            case Call():
                if value.name in names or not names:
                    yield value
                waiting += [value.callee, value.state, *value.items, *value.arguments]
            case Global() if value.name in names or not names:
                yield Call(value, ())
            case dict():
                waiting += value.values()
            case list() | tuple():
                waiting += value


def _attribute(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Call) else None


def _state(call: Call) -> Any:
    return call.state if isinstance(call.state, dict) else {}


def _names(value: Any) -> tuple[str, ...]:
    """Return class names as text: strings as they are, numbers as Python writes them."""
    names = []
    for item in values(value):
        if isinstance(item, Call) and item.name == "scalar" and len(item.arguments) == 2:
            (item,) = array(*item.arguments)
        if not isinstance(item, str | int | float | bool):
            raise CheckpointError(
                f"The file has a class name that is neither text nor number ({type(item).__name__}); "
                f"{SAVE_AGAIN}, and list the classes in the settings."
            )
        names.append(str(item))
    return tuple(names)


def _pair(size: Any) -> tuple[int, int]:
    """Return the (height, width) of a size: a side, or both."""
    sides = [size] * 2 if isinstance(size, int) else values(size)[:2]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(f"The file says a size that is not understood; {SAVE_AGAIN}.")
    return sides[0], sides[1]

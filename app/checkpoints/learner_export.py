"""The facts in a learner that was saved whole: the module tree, the classes, the transforms, the loss.

Reads the records that `unpickler` makes of `learn.export()` (fastai v1 and v2) and of `torch.save(model)`.
Gives them by the names of the settings. Knows nothing of files, and runs nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from msgspec import Struct

from app.checkpoints.exported import is_script, script_module
from app.checkpoints.foreign import ELSEWHERE, SAVE_AGAIN
from app.checkpoints.module_tree import array, is_module, rebuilding_hint, state_dict, values
from app.checkpoints.records import Call, Global, Tensor, attribute
from app.checkpoints.transforms import read_databunch, read_transforms
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
# fastai's and torch's losses by the activation of `predict`; the others are not of classifiers.
SOFTMAX: Final = frozenset(
    "CrossEntropyLossFlat CrossEntropyLoss LabelSmoothingCrossEntropyFlat LabelSmoothingCrossEntropy "
    "CrossEntropyFlat FocalLossFlat FocalLoss cross_entropy".split()
)
SIGMOID: Final = frozenset(
    "BCEWithLogitsLossFlat BCEWithLogitsFlat BCEWithLogitsLoss binary_cross_entropy_with_logits".split()
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
PICTURES: Final = ("PILImage", "PILImageBW")
# fastai's own losses give `predict` an activation; with these, and with unknown ones, it has raw scores.
RAW: Final = frozenset(
    "CrossEntropyLoss cross_entropy BCEWithLogitsLoss binary_cross_entropy_with_logits NLLLoss "
    "nll_loss".split()
)
PROBABILITIES: Final = frozenset("BCELossFlat BCELoss binary_cross_entropy".split())  # what they take


class Export(Struct, frozen=True):
    """A learner or model that was saved whole.

    `writer` names the function that wrote it; `module` is its network. `known` are settings that the file
    decides, by name. `unserved` has a phrase for each thing that is not reproduced here. `raw_scores` names
    the loss with which the notebook's own `predict` answers raw scores. `rebuildable` tells whether the file
    has the attributes of the modules, by which torch could rebuild the network.
    """

    writer: str
    module: Call
    known: Mapping[str, Any]
    unserved: tuple[str, ...] = ()
    raw_scores: str = ""
    rebuildable: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network, by name."""
        return state_dict(self.module)

    def hint(self) -> str:
        """Return the hint that torch can rebuild the network, if it can."""
        return rebuilding_hint(self.module) if self.rebuildable else ""


def find_module(tree: Any) -> Call | None:
    """Return the network in the object of a pickle: the object, or its entry or attribute of that name."""
    entries = tree if isinstance(tree, dict) else tree.state if isinstance(tree, Call) else {}
    if is_script(tree):
        return unwrapped_module(script_module(tree))
    found = [tree, *(entries.get(name) for name in MODELS)] if isinstance(entries, dict) else [tree]
    return next((unwrapped_module(value) for value in found if is_module(value)), None)


def read_export(tree: Any, numbers: Numbers) -> Export | None:
    """Read the export in the object of a pickle; None for anything else, such as a state dict.

    Raises CheckpointError for v1's `data.export`, which has no weights, and NotAClassifier for learners of
    other targets than the classes of photos.
    """
    module = find_module(tree)
    match tree:
        case Call() if module and is_script(tree):
            if not state_dict(module):
                raise CheckpointError(
                    "The file is a frozen TorchScript archive, which holds no names of weights. Deploy the "
                    "file of torch.save(model.state_dict(), 'model.pth')."
                )
            return Export("TorchScript", module, {}, rebuildable=False)
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
    loaders = values(attribute(learner.get("dls"), "loaders"))
    if not loaders or not isinstance(loaders[-1], Call):
        return Export("fastai v2 learn.export", module, {}, ("it has no dataloaders",))
    items = _transforms(loaders[-1].get("after_item"))
    batches = _transforms(loaders[-1].get("after_batch"))
    dataset = loaders[-1].get("dataset")
    _check_targets([t.name for t in items + batches], dataset)
    known, unserved = read_transforms(items, batches, numbers)
    maps = islice(_all(dataset, "CategoryMap"), MAX_MAPS)
    vocabularies = {_names(found.get("items")) for found in maps if "items" in _state(found)}
    if len(vocabularies) == 1:
        (known["classes"],) = vocabularies
    elif vocabularies:
        raise _other_target(f"{len(vocabularies)} targets with classes of their own")
    gray, strange = _opened(values(attribute(dataset, "tls")))
    if gray or (gray is None and any(_all(dataset, "PILImageBW"))):
        known["gray"] = True
    raw = _loss(learner.get("loss_func"), known, unserved, any(_all(dataset, "MultiCategorize")))
    return Export("fastai v2 learn.export", module, known, (*unserved, *strange), raw)


def _opened(lists: list[Any]) -> tuple[bool | None, list[str]]:
    """How a v2 dataset opens its pictures: whether gray, None if it does not tell; and what is not served.

    A function behind PILImage.create there, or in its place, would change every photo.
    """
    first = lists[0] if lists and isinstance(lists[0], Call) else None
    names = [t.get("_name") for t in _transforms(attribute(first, "tfms")) if t.get("_name")]
    strange = []
    if names and not str(names[-1]).endswith("create"):
        strange.append(f"its photos are opened by {names[-1]}, which is not PILImage.create")
    kinds = [kind for kind in values(attribute(first, "types")) if isinstance(kind, Global)]
    if kinds and (kinds[-1].name not in PICTURES or not kinds[-1].module.startswith("fastai")):
        strange.append(f"its photos are {kinds[-1]}, not PILImage")
    return (kinds[-1].name == "PILImageBW" if kinds else None), strange


def _transforms(pipeline: Any) -> list[Call]:
    """Return the transforms of a Pipeline that run at validation, in order; those with split_idx 0 do not.

    The exception are transforms of coordinates: their split_idx is that of the last use, and they run always.
    """
    found = [transform for transform in values(attribute(pipeline, "fs")) if isinstance(transform, Call)]
    return [t for t in found if t.get("split_idx") != 0 or "coord_fs" in _state(t)]


# --- fastai v1 ---------------------------------------------------------------------------------------------


def _fastai1(tree: Mapping[str, Any], module: Call, data: Mapping[str, Any], numbers: Numbers) -> Export:
    """Read v1's `learn.export()` (1.0.50 basic_train.py:241): the model, and the validation set's state."""
    for side in ("y_cls", "x_cls"):
        name = str(data.get(side, "")).rpartition(".")[2]
        if name in TARGETS and (side, name) != ("x_cls", "ImageList"):
            raise _other_target(TARGETS[name])
    arguments = data["tfmargs"] if isinstance(data.get("tfmargs"), dict) else {}
    normalize = data["normalize"] if isinstance(data.get("normalize"), dict) else None
    known, unserved = read_databunch(arguments, values(data.get("tfms")), normalize, numbers)
    if names := _fastai1_classes(data.get("y_proc")):
        known["classes"] = names
    raw = _loss(
        tree.get("loss_func"), known, unserved, str(data.get("y_cls", "")).endswith(".MultiCategoryList")
    )
    return Export("fastai v1 learn.export", module, known, tuple(unserved), raw)


def _fastai1_classes(processors: Any) -> tuple[str, ...]:
    for processor in values(processors) or [processors]:
        if isinstance(processor, Call) and (names := _names(processor.get("classes"))):
            return names
    return ()


# --- both --------------------------------------------------------------------------------------------------


def _loss(loss: Any, known: dict[str, Any], unserved: list[str], several: bool) -> str:
    """Choose softmax or sigmoid. With a loss that is not known, `several` labels a photo tell.

    Returns the loss's name if `predict` answers raw scores with it, in fastai 2 (learner.py:294) or 1. Raises
    NotAClassifier for a loss of numbers.
    """
    names = {x.name for x in (loss, attribute(loss, "func")) if isinstance(x, Call | Global)}
    if names & SIGMOID:
        known["multi_label"] = True
        if isinstance(threshold := attribute(loss, "thresh"), float):
            known["threshold"] = threshold
    elif names & SOFTMAX:
        known["multi_label"] = False
    elif names & REGRESSION:
        raise _other_target(f"numbers (its loss is {', '.join(sorted(names))})")
    elif names & PROBABILITIES:
        unserved.append(f"its loss {', '.join(sorted(names))} takes probabilities, not scores")
    elif several:
        known["multi_label"] = True
    else:
        return ", ".join(sorted(names))
    return ", ".join(sorted(names & RAW)) if names <= RAW else ""


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

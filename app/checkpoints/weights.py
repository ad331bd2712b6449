"""The weights in the object of a pickle: a state dict, without the prefixes of wrappers."""

import re
from collections.abc import Iterable
from typing import Any, Final

from app.checkpoints.budget import Budget
from app.checkpoints.foreign import other_object
from app.checkpoints.module_tree import is_module
from app.checkpoints.records import Call, Tensor

Tensors = dict[str, Tensor]

ENTRIES: Final = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "ema",
)
OPTIMIZERS: Final = re.compile(r"(?i)opt(im\w*)?|\w*optimi\w+|\w*sched\w*|callbacks|loops|scaler|amp")
MAX_DEPTH: Final = 3  # of the state dict in the dict of a training script
MAX_WRAPPERS: Final = 8  # around one another
MAX_NAME: Final = 1000  # characters
# Names of tensors beside the network: of losses and metrics, which nothing needs after the training.
BESIDE: Final = re.compile(
    r"(?i)(\w*criterion|loss|\w*_loss|loss_?(fn|func|function)|\w*metrics?|(train|val|valid|test)_?(acc|f1|auroc|"
    r"accuracy|confmat|cm)\w*|n_averaged|acc|accuracy|f1|auroc|confmat|confusion_matrix|class_weights?|pos_weight)(\.|$)"
)
# Attributes in which people keep a network; its head may stand beside it.
WRAPPER: Final = re.compile(
    r"module|_orig_mod|model|net|network|backbone|encoder|body|base|base_model|timm_model|classifier_model"
    r"|feature_extractor|features_extractor|cnn|extractor|pretrained|resnet\d*|efficientnet|densenet\d*|vgg\d*|student"
)
# Modules behind a network that change no order of its answers.
IDLE: Final = frozenset("Dropout Identity Softmax LogSoftmax CrossEntropyLoss".split())
HEAD: Final = re.compile(r"(fc|classifier|head|linear|output|out|cls|logits|last_linear)\w*")


def find_weights(tree: Any, budget: Budget) -> Tensors:
    """Return the tensors of the network in the object of a pickle, by name.

    Raises CheckpointError, naming the object, if there are none.
    """
    if found := _most(tree, MAX_DEPTH, budget):
        return found
    raise other_object(tree)


def _most(value: Any, depth: int, budget: Budget) -> Tensors:
    """Return the tensors in a dict or below it: a script may keep its best accuracy beside the weights."""
    return max(_tensors(value, budget), _below(value, depth, budget), key=len)


def _tensors(value: Any, budget: Budget) -> Tensors:
    entries = value.state if isinstance(value, Call) else value  # a subclass of dict
    if not isinstance(entries, dict):
        return {}
    budget.charge(0, len(entries))
    return {
        name: tensor
        for name, tensor in entries.items()
        if isinstance(tensor, Tensor) and isinstance(name, str) and len(name) <= MAX_NAME
    }


def _below(value: Any, depth: int, budget: Budget) -> Tensors:
    """Search the entries of a dict for a state dict: by its usual names, else the one of most tensors."""
    entries = value.state if isinstance(value, Call) else value
    if not isinstance(entries, dict) or not depth:
        return {}
    named = {n: v for n, v in entries.items() if isinstance(n, str) and not OPTIMIZERS.fullmatch(n)}
    inner = {name: _most(each, depth - 1, budget) for name, each in named.items()}
    if known := next((inner[name] for name in ENTRIES if inner.get(name)), None):
        return known
    parts = {name: tensors for name, tensors in inner.items() if tensors}
    names = {frozenset(tensors) for tensors in parts.values()}
    if len(parts) != len(names):  # copies of one network
        return next(iter(parts.values()), {})
    if len(parts) < 2:
        return next(iter(parts.values()), {})
    # parts of a network, such as {"backbone": ..., "head": ...}, or a generator beside a discriminator
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return the names without those of losses and metrics, and without the prefixes of wrappers.

    Each name without its prefix is mapped to the one in the file.
    """
    kept = {name: name for name in names if not BESIDE.match(name)} or {name: name for name in names}
    for _ in range(MAX_WRAPPERS):
        prefix = _prefix(kept)
        stripped = {name.removeprefix(prefix): own for name, own in kept.items()}
        if not prefix or len(stripped) < len(kept) or not all("." in name for name in stripped):
            break  # else two tensors would get one name, or a layer none
        kept = stripped
    return kept


def _prefix(names: Iterable[str]) -> str:
    """Return the prefix of a wrapper: of all names, or of all but a head's. Empty without one."""
    parts = {name.partition(".")[0] if "." in name else "" for name in names}
    wrappers = [part for part in parts if len(parts) == 1 or WRAPPER.fullmatch(part)]
    others = parts - set(wrappers)
    if len(wrappers) != 1 or not wrappers[0] or not all(HEAD.fullmatch(part) for part in others):
        return ""
    return f"{wrappers[0]}."


def unwrapped_module(module: Call) -> Call:
    """Return the network in a wrapper such as DataParallel, a LightningModule or a compiled module."""
    while len(kept := _children(module)) == 1:
        (name,) = kept
        own = [*(module.get("_parameters") or {}).values(), *(module.get("_buffers") or {}).values()]
        if not WRAPPER.fullmatch(name) or any(isinstance(value, Tensor) for value in own):
            break
        module = kept[name]
    return module


def _children(module: Call) -> dict[str, Call]:
    children = module.get("_modules")
    named = children.items() if isinstance(children, dict) else ()
    return {
        str(name): child
        for name, child in named
        if is_module(child) and child.name not in IDLE and not BESIDE.match(f"{name}.")
    }

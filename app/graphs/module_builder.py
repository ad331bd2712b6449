"""The network of an export, rebuilt from its module tree without its code.

Imports torch, torchvision, timm and fastai, and only inside its functions.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.checkpoints.module_tree import LIBRARIES, is_module
from app.checkpoints.records import Call, Global
from app.errors import ArchitectureUnknown
from app.types import Arrays

if TYPE_CHECKING:
    import torch

MAX_DEPTH: Final = 100
SKIPPED: Final = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def build_module(record: Call, arrays: Arrays, prefix: str = "") -> "torch.nn.Module":
    """The module that a record describes, with the weights `arrays` by state-dict name.

    No code of the file runs: the classes are those of the installed torch, torchvision, timm and fastai, made
    without calling their constructors, and given the plain attributes that the file has for them. Raises
    ArchitectureUnknown.
    """
    torch = importlib.import_module("torch")
    name = str(record.callee)
    if prefix.count(".") > MAX_DEPTH:
        raise ArchitectureUnknown(f"The network in the file has over {MAX_DEPTH} modules in one another.")
    if not (isinstance(record.callee, Global) and name.startswith(LIBRARIES)):
        raise ArchitectureUnknown(
            f"The network in the file has a module {name}, which is not one of torch's, torchvision's, "
            "timm's or fastai's, and is not rebuilt. Save the weights alone, of a network that one of them "
            "offers."
        )
    try:
        kind = getattr(importlib.import_module(record.callee.module), record.callee.name, None)
    except ImportError:  # a module of an older version
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ArchitectureUnknown(
            f"The installed packages have no module {name}; install the versions of your notebook."
        )
    module: Any = object.__new__(kind)
    torch.nn.Module.__init__(module)
    plain = {
        key: value
        for key, value in record.state.items()
        if key not in SKIPPED and "hooks" not in key and is_plain(value)
    }
    module.__setstate__(plain)  # torch's own way to add newer attributes to an old module
    for place, wrap in (("_parameters", torch.nn.Parameter), ("_buffers", lambda tensor: tensor)):
        for key in record.get(place) or {}:
            array = arrays.get(f"{prefix}{key}")
            tensor = None if array is None else wrap(torch.from_numpy(np.array(array, np.float32)))
            getattr(module, place)[key] = tensor
    for key, child in (record.get("_modules") or {}).items():
        module._modules[key] = build_module(child, arrays, f"{prefix}{key}.") if is_module(child) else None
    return module  # type: ignore[no-any-return]


def is_plain(value: Any) -> bool:
    """Whether an attribute is made of numbers, texts and tuples alone."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)

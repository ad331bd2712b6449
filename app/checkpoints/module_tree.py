"""The module tree of a network in a pickle: its tensors by name, and whether its layers are the usual ones.

Reads the records that `unpickler` makes. Knows nothing of learners, files and settings.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np

from app.checkpoints.fingerprint import layers_of
from app.checkpoints.foreign import SAVE_AGAIN
from app.checkpoints.records import Call, Global, Tensor
from app.errors import CheckpointError

MAX_PARTS: Final = 100_000  # modules and tensors; a densenet201 has 2,000
MAX_NAME: Final = 1000  # characters
# Whose modules are rebuilt: each only computes.
LIBRARIES: Final = (
    "torch.nn.modules.",
    "torchvision.models.",
    "torchvision.ops.",
    "fastai.layers.",
    "fastai.vision.learner.",
    "fastai.vision.models.",
    "timm.layers.",
    "timm.models.",
)


def is_module(value: Any) -> bool:
    """Tell whether a value is the record of a torch.nn.Module."""
    return isinstance(value, Call) and isinstance(value.get("_modules"), dict)


def state_dict(module: Call) -> dict[str, Tensor]:
    """Return the tensors of a module tree, by the names that torch's `state_dict()` gives them.

    Raises CheckpointError for a tree that has no end, or shares its branches without measure.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, found in modules(module):
        left_out = {
            name for name in values(found.get("_non_persistent_buffers_set")) if isinstance(name, str)
        }
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(found, kind).items():
                if isinstance(value, Tensor) and name not in left_out:
                    tensors[f"{prefix}{name}"] = value
    return tensors


def rebuilding_hint(module: Call) -> str:
    """Return the hint that torch can rebuild a network, if all its modules are of libraries; else nothing."""
    if not all(kind.startswith(LIBRARIES) for kind in kinds(module)):
        return ""
    return " Or serve it where requirements.txt is installed: the network in the file is rebuilt there."


def kinds(module: Call) -> set[str]:
    """Return the classes of the modules of a tree, with their Python modules."""
    return {str(found.callee) for _, found in modules(module)}


def modules_of(module: Call, parts: Collection[str]) -> dict[str, Call]:
    """Return the modules in some parts of a tree, by their names in it, in its order."""
    found = {prefix.rstrip("."): each for prefix, each in modules(module)}
    return {name: each for name, each in found.items() if name.partition(".")[0] in parts}


def layers_in(module: Call) -> dict[str, int]:
    """Count the layers of a tree that names and shapes do not tell, as `fingerprint` does."""
    return layers_of(
        (prefix.rstrip("."), each.name, each.state if isinstance(each.state, dict) else {})
        for prefix, each in modules(module)
    )


def modules(module: Call) -> Iterator[tuple[str, Call]]:
    """Walk the modules of a tree with their prefixes, in torch's order. Raises CheckpointError where there is
    no end.
    """
    waiting, count = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        yield prefix, module
        children = _entries(module, "_modules")
        own = [_entries(module, "_parameters"), _entries(module, "_buffers")]
        count += sum(map(len, (*own, children, values(module.get("_non_persistent_buffers_set")))))
        longest = max((len(str(name)) for entries in (*own, children) for name in entries), default=0)
        if count > MAX_PARTS or len(prefix) + longest > MAX_NAME:
            raise CheckpointError(
                f"The file holds over {MAX_PARTS:,} modules and tensors, or a name of over {MAX_NAME:,} "
                "characters: it is damaged."
            )
        below = reversed(children.items())
        waiting += [(f"{prefix}{name}.", child) for name, child in below if is_module(child)]


def _entries(module: Call, kind: str) -> dict[str, Any]:
    entries = module.get(kind)
    return entries if isinstance(entries, dict) else {}


def values(value: Any) -> list[Any]:
    """Return the items of a list, a tuple, fastcore's L, a set or an array of objects; else nothing."""
    match value:
        case list() | tuple():
            return list(value)
        case Call(callee=Global(name="L"), state={"items": inner}):
            return values(inner)
        case Call(callee=Global(name="_reconstruct"), state=(_, _, dtype, _, data)):
            return list(data) if isinstance(data, list) else array(dtype, data)
        case Call(callee=Global(name="set" | "fastuple" | "Tuple" | "Size"), arguments=(inner, *_)):
            return values(inner)
        case Call(items=items):
            return list(items)
    return []


def array(dtype: Any, data: Any) -> list[Any]:
    """Return the Python values of a pickled numpy array or scalar."""
    if not isinstance(dtype, Call) or not isinstance(data, bytes) or not isinstance(dtype.arguments[0], str):
        raise CheckpointError(f"The file has an array in a form that is not understood; {SAVE_AGAIN}.")
    if not re.fullmatch(r"[<>|=]?([biuf][1248]|U\d{1,4})", kind := dtype.arguments[0]):
        raise CheckpointError(f"The file has an array of the type {kind[:40]!r}; {SAVE_AGAIN}.")
    return np.frombuffer(data, np.dtype(kind)).tolist()  # type: ignore[no-any-return]

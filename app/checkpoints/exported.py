"""Networks that torch saved with their code: the named weights of TorchScript and of torch.export.

A TorchScript archive is a pickle of the modules, with classes below `__torch__`. An archive of torch.export
lists its weights in a JSON text beside the raw numbers.
"""

import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from app.checkpoints.records import DTYPES, Call, Global, Storage, Tensor
from app.errors import CheckpointError

WEIGHTS: Final = "data/weights/"
CONFIG: Final = WEIGHTS + "model_weights_config.json"
MAX_CONFIG: Final = 8_000_000  # bytes; 10,000 tensors take 4 MB
MAX_DEPTH: Final = 100  # of modules in one another
MANGLED: Final = re.compile(r"^__torch__\.|___torch_mangle_\d+\.?")
# torch/_export/serde/schema.py (2.13): ScalarType
SCALARS: Final = {
    1: "ByteStorage", 2: "CharStorage", 3: "ShortStorage", 4: "IntStorage", 5: "LongStorage",
    6: "HalfStorage", 7: "FloatStorage", 8: "DoubleStorage", 12: "BoolStorage", 13: "BFloat16Storage",
}  # fmt: skip


class _Number(Struct):
    as_int: int


class _Meta(Struct):
    dtype: int
    sizes: list[_Number]
    strides: list[_Number]
    storage_offset: _Number


class _Weight(Struct):
    path_name: str
    tensor_meta: _Meta
    use_pickle: bool = False


class _Config(Struct):
    config: dict[str, _Weight]


def read_config(content: bytes, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Return the weights that the JSON text of torch.export lists; `sizes` are the bytes of the entries.

    Raises CheckpointError, and msgspec's errors where it is damaged.
    """
    if len(content) > MAX_CONFIG:
        raise CheckpointError(f"The list of weights has {len(content):,} bytes, more than any.")
    found = {}
    for name, weight in msgspec.json.decode(content, type=_Config).config.items():
        meta = weight.tensor_meta
        if weight.use_pickle or meta.dtype not in SCALARS:
            raise CheckpointError(
                f"The weight {name[:80]} is of a kind that is not read; save the weights with "
                "torch.save(model.state_dict(), 'model.pth')."
            )
        dtype = DTYPES[SCALARS[meta.dtype]]
        storage = Storage(weight.path_name, dtype, sizes[WEIGHTS + weight.path_name] // dtype.itemsize)
        size, stride = (tuple(each.as_int for each in sides) for sides in (meta.sizes, meta.strides))
        found[name] = Tensor(storage, meta.storage_offset.as_int, size, stride)
    return found


def is_script(tree: Any) -> bool:
    """Tell whether the object of a pickle is a module of TorchScript."""
    return isinstance(tree, Call) and str(tree.callee).startswith("__torch__.")


def script_module(script: Call, depth: int = 0) -> Call:
    """Return a module of TorchScript as the record of the module that it was made of."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"The network in the file has over {MAX_DEPTH} modules in one another.")
    entries = script.state if isinstance(script.state, dict) else {}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    modules = {name: script_module(value, depth + 1) for name, value in entries.items() if is_script(value)}
    kind, name = MANGLED.sub("", MANGLED.sub("", f"{script.callee}")).rpartition(".")[::2]
    return Call(Global(kind, name), (), {"_parameters": tensors, "_buffers": {}, "_modules": modules})

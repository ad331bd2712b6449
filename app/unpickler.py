"""Walk a pickle without running it: a machine over `pickletools.genops` that calls nothing.

A global stays a name, a call becomes a record of the call; only the few calls that rebuild a tensor are
understood, and they become descriptions of tensors. Knows nothing of files and containers.
"""

import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from app.errors import CheckpointError, UnsafeCheckpoint

T = TypeVar("T")
MAX_OPCODES: Final = 1_000_000  # a resnet152 with optimizer state has 90,000
MAX_DIMENSIONS: Final = 64  # numpy's own
MAX_BITS: Final = 80  # of an integer: the legacy magic number has 77, everything else far fewer
SAVE_AGAIN: Final = "save the weights with learn.save('stage-2', with_opt=False) and deploy that file"

# How torch names the element types. numpy has no bfloat16: two bytes that are widened by `_widen`.
BFLOAT16: Final = np.dtype([("bfloat16", "<u2")])
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# All that `Learner.save` writes: the tensors, and in `opt` numpy scalars and fastcore's list. Each is a name
# to us.
ALLOWED_GLOBALS: Final = frozenset(
    {("torch", name) for name in DTYPES}
    | {("torch", name) for name in ("Size", "device", "float32", "float16", "bfloat16", "float64", "int64")}
    | {
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("fastai.torch_core", "TensorBase"),
        ("fastcore.foundation", "L"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
        ("__builtin__", "set"),
        ("builtins", "set"),
    }
)


@dataclass(frozen=True)
class Storage:
    """A persistent id: where the numbers of one or more tensors are."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class Global:
    """The name of a class or function: never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Tensor:
    """A tensor not yet read: which part of which storage; `size` and `stride` in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for and that is not made."""

    callee: Global
    arguments: tuple[Any, ...]


class _Mark:
    """Where a tuple, list or dict begins on the stack."""


@dataclass
class Unpickler:
    """Walks pickles that stand one after the other in `source`; `load` returns the next object.

    Raises UnsafeCheckpoint at a global that is not in ALLOWED_GLOBALS; ValueError, IndexError, KeyError or
    TypeError where the pickle is damaged. The memory it takes is bounded by the bytes it reads.
    """

    source: bytes | mmap.mmap
    storages: dict[str, Storage] = field(default_factory=dict)
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def load(self) -> Any:
        self.stack, self.memo = [], {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.source)):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return self.stack.pop()
            if count > MAX_OPCODES:
                raise CheckpointError(
                    f"The pickle has over {MAX_OPCODES:,} opcodes, more than any checkpoint."
                )
            self.step(opcode.name, argument)
        raise EOFError("the pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode on the stack: the semantics of `pickletools`, less every call."""
        if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
            raise ValueError(f"an integer of {argument.bit_length()} bits")
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[name])))
        elif name == "GLOBAL":
            self.find(*argument.split(" ", 1))
        elif name in _STEPS:
            _STEPS[name](self)
        elif name not in _IGNORED:
            raise ValueError(f"opcode {name} has no place in a file of weights")

    def to_mark(self) -> list[Any]:
        """Take what was pushed since the last mark, and the mark."""
        items: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            items.append(value)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        """Take the last `count` values, oldest first."""
        values = [self.stack.pop() for _ in range(count)][::-1]
        if any(isinstance(value, _Mark) for value in values):
            raise ValueError("a mark where a value was expected")
        return values

    def find(self, module: Any, name: Any) -> None:
        # a name is a string before it is hashed: hashing a tuple of 400,000 levels would end the process
        module, name = _as(str, module), _as(str, name)
        if (module, name) not in ALLOWED_GLOBALS:
            raise UnsafeCheckpoint(
                f"The file names {module}.{name}, which a file of weights has no use for; nothing of it was "
                f"run. If you trained this model, {SAVE_AGAIN}."
            )
        self.stack.append(Global(module, name))

    def reduce(self) -> None:
        callee, arguments = self.pop(2)
        self.stack.append(_rebuild(callee, arguments))

    def persistent(self) -> None:
        """('storage', type, key, device, count, view): the numbers of a tensor, outside of the pickle."""
        kind, storage_type, key, _, count, *view = _as(tuple, self.stack.pop())
        if kind != "storage" or any(view) or _as(int, count) < 0:
            raise ValueError("a persistent id is not a whole storage")
        self.storages[_as(str, key)] = Storage(key, DTYPES[storage_type.name], count)
        self.stack.append(self.storages[key])

    def extend(self, items: list[Any]) -> None:
        """Append to the list below, or ignore what would be added to an object that is not built."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Set the keys of the dict below. A key that is no string cannot name a tensor: left out."""
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))


def _rebuild(callee: Any, arguments: Any) -> Any:
    """What a call would return, for the calls that make a state dict; a record of the call for all others."""
    match callee:
        case Global("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"):
            storage, offset, size, stride, *_ = arguments
            return Tensor(_as(Storage, storage), _as(int, offset), _integers(size), _integers(stride))
        case Global("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"):
            return arguments[0]
        case Global(
            "torch._tensor", "_rebuild_from_type_v2"
        ):  # a tensor subclass: (rebuild, type, arguments, state)
            return _rebuild(arguments[0], arguments[2])
        case Global("collections", "OrderedDict") if not arguments:  # its entries follow one by one
            return {}
    return Call(_as(Global, callee), _as(tuple, arguments))


def _as(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} was expected, found a {type(value).__name__}")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    if len(_as(tuple, values)) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(values)} dimensions")
    return tuple(_as(int, value) for value in values)


# What each opcode does; `pickletools` documents them. An opcode that is not here is refused.
_VALUES: Final = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "MARK": _Mark,
}
_IGNORED: Final = frozenset({"PROTO", "FRAME"})
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: Final[dict[str, Callable[[Unpickler], Any]]] = {
    "STACK_GLOBAL": lambda machine: machine.find(*machine.pop(2)),
    "REDUCE": Unpickler.reduce,
    "NEWOBJ": Unpickler.reduce,  # a class instead of a function: to us the same record
    "BUILD": lambda machine: machine.pop(1),  # the state of an object that is not built
    "BINPERSID": Unpickler.persistent,
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.to_mark())),
    "LIST": lambda machine: machine.stack.append(machine.to_mark()),
    "APPEND": lambda machine: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine: machine.update(machine.to_mark()),
    "POP": lambda machine: machine.pop(1),
}

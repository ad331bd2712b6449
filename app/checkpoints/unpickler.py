"""A pickle machine over `pickletools.genops` that calls nothing.

A global stays a name, a call becomes a record of the call; only the few calls that rebuild a tensor are
understood, and they become descriptions of tensors. Knows nothing of files and containers.
"""

import io
import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from msgspec import Struct

from app.checkpoints.allowlist import STORAGES, is_trusted
from app.errors import CheckpointError, UnsafeCheckpoint

T = TypeVar("T")
MAX_OPCODES: Final = 1_000_000  # a resnet152 with optimizer state has 90,000
MAX_DIMENSIONS: Final = 64  # numpy's own
MAX_BITS: Final = 80  # of an integer: the legacy magic number has 77, everything else far fewer
MAX_COPIES: Final = 10_000_000  # entries and characters that calls copy, beside those that the file holds
TENSOR_MODULES: Final = frozenset(  # whose functions make tensors
    "torch._utils torch._tensor torch.tensor torch.nn.parameter fastai.torch_core fastai2.torch_core".split()
)
SAVE_AGAIN: Final = "save the weights with learn.save('stage-2', with_opt=False) and deploy that file"

# How torch names the element types. numpy has no bfloat16: two bytes that are widened by `_widen`.
BFLOAT16: Final = np.dtype([("bfloat16", "<u2")])
_TYPES: Final[tuple[Any, ...]] = ("<f8", "<f4", "<f2", BFLOAT16, "<i8", "<i4", "<i2", "i1", "u1", "?")
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind) for name, kind in zip(STORAGES, _TYPES, strict=True)
}


class Storage(Struct, frozen=True):
    """A persistent id: the place of the numbers of one or more tensors."""

    key: str
    dtype: np.dtype[Any]
    count: int


class Nested(Struct, frozen=True):
    """A storage that is a whole torch file of its own inside the pickle, as plain `pickle.dump` writes it."""

    data: bytes


class Global(Struct, frozen=True, order=True):
    """The name of a class or function: never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Tensor(Struct, frozen=True):
    """A tensor not yet read: a part of a storage; `size` and `stride` in elements."""

    storage: Storage | Nested
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, repr=False)
class Call:
    """A call in the pickle that is not made: the record of an object.

    `callee` is the class or function, or the Call that would have returned it. `state` holds the attributes
    by name, or any other state for its class; `items` the values that would have been appended.
    """

    callee: "Global | Call"
    arguments: tuple[Any, ...]
    state: Any = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name of the class or function, without its module; empty if a call would make it."""
        return self.callee.name if isinstance(self.callee, Global) else ""

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return one of its attributes."""
        return self.state.get(attribute, default) if isinstance(self.state, dict) else default


class _Mark:
    """The start of a tuple, list or dict on the stack."""


@dataclass
class Unpickler:
    """Walks pickles that stand one after the other in `source`; `load` returns the next object and leaves the
    source behind it.

    `globals` are the names met so far. Raises UnsafeCheckpoint at one that is not trusted; ValueError,
    IndexError, KeyError or TypeError where the pickle is damaged. The memory it takes is bounded by the bytes
    it reads.
    """

    source: io.BytesIO | mmap.mmap
    storages: dict[str, Storage] = field(default_factory=dict)
    globals: set[Global] = field(default_factory=set)
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    copies: int = 0

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
        """Take the values above the last mark, and the mark."""
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
        if not is_trusted(module, name):
            raise UnsafeCheckpoint(
                f"The file names {module}.{name}, which no model has a use for; nothing of it was run. If "
                f"you trained this model, {SAVE_AGAIN}."
            )
        self.stack.append(Global(module, name))
        self.globals.add(self.stack[-1])

    def reduce(self) -> None:
        callee, arguments = self.pop(2)
        self.copy(*_as(tuple, arguments)[:1])
        self.stack.append(_rebuild(callee, arguments))

    def copy(self, *values: Any) -> None:
        """Count what is copied: a few bytes of a pickle may ask for a copy of all that it held before."""
        size = len(self.source) if isinstance(self.source, mmap.mmap) else self.source.getbuffer().nbytes
        self.copies += sum(len(value) for value in values if isinstance(value, str | list | dict))
        if self.copies > MAX_COPIES + size:
            raise CheckpointError("The pickle copies what it holds over and over, as no checkpoint does.")

    def persistent(self) -> None:
        """('storage', type, key, device, count, view): the numbers of a tensor, outside of the pickle. v1
        writes ('module', class, file, source) as well, to bring along the code of a class: the class is kept,
        by name.
        """
        kind, thing, key, *more = _as(tuple, self.stack.pop())
        if kind == "module":
            self.stack.append(_as(Global, thing))
            return
        _, count, *view = more
        if kind != "storage" or any(view) or _as(int, count) < 0:
            raise ValueError("a persistent id is not a whole storage")
        if (kind := _as(Global, thing).name) not in DTYPES:
            raise CheckpointError(
                f"The file holds a {kind}, which is not read; save the weights in float32 (model.float())."
            )
        self.storages[_as(str, key)] = Storage(key, DTYPES[kind], count)
        self.stack.append(self.storages[key])

    def build(self) -> None:
        """Give the object below its state; where it has attributes already, the new ones are added."""
        (state,) = self.pop(1)
        match self.stack[-1], state:
            case Call(), (dict() | None, dict() as slots):  # attributes, and those of __slots__
                self.copy(*state)
                self.stack[-1].state = {**(state[0] or {}), **slots}
            case Call(), _:
                self.stack[-1].state = state

    def extend(self, items: list[Any]) -> None:
        """Append to the list or object below."""
        match self.stack[-1]:
            case list() as values:
                values.extend(items)
            case Call() as call:
                call.items.extend(items)

    def update(self, items: list[Any]) -> None:
        """Set the keys of the dict below. A key other than a string names nothing of use: left out."""
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))

    def dict(self) -> None:
        """Make a dict as protocol 0 writes it."""
        items = self.to_mark()
        self.stack.append({})
        self.update(items)


def _rebuild(callee: Any, arguments: Any) -> Any:
    """Return the value of a call that makes a state dict; a record of any other call."""
    if not isinstance(callee, Global | Call):
        raise TypeError(f"a {type(callee).__name__} is called")
    if isinstance(callee, Global) and callee.module in TENSOR_MODULES:
        value = _rebuild_tensor(callee.name, arguments)
    else:
        value = _rebuild_plain(callee, arguments)
    return Call(callee, _as(tuple, arguments)) if value is None else value


def _rebuild_tensor(function: str, arguments: Any) -> Any:
    """Return the tensor of a call of torch's own functions; None for any other call."""
    match function, arguments:
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (
            Storage() | Nested() as storage,
            offset,
            size,
            stride,
            *_,
        ):
            return Tensor(storage, _as(int, offset), _integers(size), _integers(stride))
        case "_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter", (Tensor() as tensor, *_):
            return tensor
        case "_rebuild_from_type" | "_rebuild_from_type_v2", (rebuild, _, inner, *_):  # a subclass of Tensor
            return _rebuild_tensor(_as(Global, rebuild).name, inner)
        case "_fa_rebuild_tensor", (_, *inner):  # the same, by fastai 2.0
            return _rebuild_tensor("_rebuild_tensor_v2", inner)
    return None


def _rebuild_plain(callee: Any, arguments: Any) -> Any:
    """Return a dict, bytes or object that old protocols write as a call; None for any other call."""
    match callee, arguments:
        case Global("torch.storage", "_load_from_bytes"), (bytes() as data,):
            return Nested(data)
        case Global("_codecs", "encode"), (str() as text, "latin1" | "latin-1"):  # bytes, in protocol 2
            return text.encode("latin-1")
        case Global("collections", "OrderedDict"), (list() as pairs,):  # Python 2
            return {key: value for key, value in pairs if isinstance(key, str)}
        case Global("collections", "OrderedDict" | "defaultdict"), _:  # the entries follow one by one
            return {}
        case Global("copyreg" | "copy_reg", "_reconstructor" | "__newobj__"), (Global() as kind, *_):
            return Call(kind, ())
    return None


def _as(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} was expected, found a {type(value).__name__}")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    if len(_as(tuple, values)) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(values)} dimensions")
    return tuple(_as(int, value) for value in values)


# The opcodes by their effect; `pickletools` documents them. Any other opcode is refused.
_VALUES: Final = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
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
    "NEWOBJ_EX": lambda machine: machine.stack.append(
        _rebuild(*machine.pop(3)[:2])
    ),  # less the named arguments
    "BUILD": Unpickler.build,
    "BINPERSID": Unpickler.persistent,
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.to_mark())),
    "FROZENSET": lambda machine: machine.stack.append(machine.to_mark()),
    "DICT": Unpickler.dict,
    "LIST": lambda machine: machine.stack.append(machine.to_mark()),
    "APPEND": lambda machine: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine: machine.update(machine.to_mark()),
    "POP": lambda machine: machine.pop(1),
    "POP_MARK": Unpickler.to_mark,
}

"""A pickle machine over `pickletools.genops` that calls nothing.

A global stays a name, a call becomes a record of the call; only the few calls that rebuild a tensor are
understood, and they become descriptions of tensors. Knows nothing of files and containers.
"""

import io
import mmap
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from app.checkpoints.allowlist import is_expected, is_expected_call, is_trusted
from app.checkpoints.budget import Budget
from app.checkpoints.foreign import unsafe
from app.checkpoints.records import DTYPES, Call, Global, Nested, Storage, Tensor
from app.errors import CheckpointError, plain

T = TypeVar("T")
MAX_DIMENSIONS: Final = 64  # numpy's own
MAX_BITS: Final = 80  # of an integer: the legacy magic number has 77, everything else far fewer
MAX_KEY: Final = 1_000_000  # of a dict: larger numbers could be chosen to collide
SLOT, ENTRY, OBJECT = 16, 128, 400  # bytes of a place on the stack or in a list, of one in a dict, of a Call
BUILT: Final = (
    ("CodeType",),
    ("MethodType",),
)  # of cloudpickle's _builtin_type: a call runs no code
TENSOR_MODULES: Final = frozenset(  # whose functions make tensors
    "torch._utils torch._tensor torch.tensor torch.nn.parameter fastai.torch_core fastai2.torch_core".split()
)


class _Mark:
    """The start of a tuple, list or dict on the stack."""


@dataclass
class Unpickler:
    """Walks pickles that stand one after the other in `source`; `load` returns the next object and leaves the
    source behind it.

    `unexpected` are the names met so far that no network, transform or data block needs, `nested` the torch
    files within. Raises UnsafeCheckpoint at a name that is not trusted; ValueError, IndexError, KeyError or
    TypeError where the pickle is damaged; CheckpointError where the `budget` ends.
    """

    source: io.BytesIO | mmap.mmap
    budget: Budget
    storages: dict[str, Storage] = field(default_factory=dict)
    unexpected: set[Global] = field(default_factory=set)
    nested: list[bytes] = field(default_factory=list)
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def load(self) -> Any:
        self.stack, self.memo = [], {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.source)):  # type: ignore[arg-type]
            self.budget.charge(SLOT, 1)
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument, count)
        raise EOFError("the pickle has no end")

    def step(self, name: str, argument: Any, count: int) -> None:
        """Carry out one opcode, the `count`-th: the semantics of `pickletools`, less every call."""
        if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
            raise ValueError(f"an integer of {argument.bit_length()} bits")
        if name in _VALUES:
            self.push(argument)
        elif name in _CONSTANTS:
            self.push(_CONSTANTS[name]())
        elif name in _PUTS:
            self.put(len(self.memo) if name == "MEMOIZE" else argument, count)
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self.push(tuple(self.pop(_TUPLES[name])))
        elif name == "GLOBAL":
            self.find(*argument.split(" ", 1))
        elif name in _STEPS:
            _STEPS[name](self)
        elif name not in _IGNORED:
            raise ValueError(f"opcode {name} has no place in a file of weights")

    def push(self, value: Any) -> None:
        """Put a new value on the stack, and charge its size."""
        self.budget.charge(OBJECT if isinstance(value, Call) else sys.getsizeof(value))
        self.stack.append(value)

    def put(self, key: int, count: int) -> None:
        """Remember the top of the stack. Keys are counted: others could be chosen to collide."""
        if not 0 <= key <= count:
            raise ValueError(f"the memo key {key} at opcode {count}")
        self.budget.charge(ENTRY)
        self.memo[key] = self.stack[-1]

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
        found = Global(module, name)
        if not is_trusted(module, name):
            raise unsafe(found)
        if not is_expected(module, name):
            self.unexpected.add(found)
        self.push(found)

    def reduce(self) -> None:
        callee, arguments = self.pop(2)
        self.call(callee, arguments)

    def call(self, callee: Any, arguments: Any) -> None:
        """Push the result of a call, or its record; the named arguments of NEWOBJ_EX are left out."""
        match callee, arguments:
            case Global("collections", "OrderedDict"), (list() as pairs, *_):
                self.budget.charge(ENTRY * len(pairs))
            case Global("torch.storage", "_load_from_bytes"), (bytes() as data, *_):
                self.nested.append(data)
        self.push(_rebuild(callee, arguments))
        if isinstance(callee, Global) and not is_expected_call(callee.module, callee.name, arguments):
            self.unexpected.add(callee)
        if (
            isinstance(callee, Call) and callee.arguments not in BUILT
        ):  # the pickle makes the function that it calls
            self.unexpected.add(_maker(callee))

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
            remedy = "save the weights in float32 (model.float())"
            if kind.startswith("Q"):  # of torch's quantization, which float() does not undo
                remedy = "save the weights of the network before you quantize it"
            raise CheckpointError(f"The file holds a {plain(kind, 40)}, which is not read; {remedy}.")
        self.budget.charge(ENTRY)
        self.storages[_as(str, key)] = Storage(key, DTYPES[kind], count)
        self.stack.append(self.storages[key])

    def build(self) -> None:
        """Give the object below its state; where it has attributes already, the new ones are added."""
        (state,) = self.pop(1)
        match self.stack[-1], state:
            case Call(), (dict() | None, dict() as slots):  # attributes, and those of __slots__
                self.budget.charge(ENTRY * sum(map(len, filter(None, state))))
                self.stack[-1].state = {**(state[0] or {}), **slots}
            case Call(), _:
                self.stack[-1].state = state

    def extend(self, items: list[Any]) -> None:
        """Append to the list or object below."""
        self.budget.charge(SLOT * len(items))
        match self.stack[-1]:
            case list() as values:
                values.extend(items)
            case Call() as call:
                call.items.extend(items)

    def update(self, items: list[Any]) -> None:
        """Set the keys of the dict below, or of the object, which is of a subclass. Only names and numbers
        are kept as keys: others name nothing of use.
        """
        self.budget.charge(ENTRY * len(items))
        below = self.stack[-1].state if isinstance(self.stack[-1], Call) else self.stack[-1]
        if isinstance(below, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            below.update((key, value) for key, value in pairs if _is_key(key))

    def dict(self) -> None:
        """Make a dict as protocol 0 writes it."""
        items = self.to_mark()
        self.push({})
        self.update(items)


def _is_key(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, int) and 0 <= key <= MAX_KEY)


def _maker(call: Call) -> Global:
    """Return the name behind a call of the result of a call."""
    while isinstance(call.callee, Call):
        call = call.callee
    return call.callee


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
            return {key: value for key, value in pairs if _is_key(key)}
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
    "NEWOBJ_EX": lambda machine: machine.call(*machine.pop(3)[:2]),
    "BUILD": Unpickler.build,
    "BINPERSID": Unpickler.persistent,
    "TUPLE": lambda machine: machine.push(tuple(machine.to_mark())),
    "FROZENSET": lambda machine: machine.push(machine.to_mark()),
    "DICT": Unpickler.dict,
    "LIST": lambda machine: machine.push(machine.to_mark()),
    "APPEND": lambda machine: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine: machine.update(machine.to_mark()),
    "POP": lambda machine: machine.pop(1),
    "POP_MARK": Unpickler.to_mark,
}

"""The records that a pickle becomes: names, calls that are not made, tensors that are not read yet."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from msgspec import Struct

STORAGES: Final = (
    "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage",
    "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
)  # fmt: skip
# The element types by torch's names. numpy has no bfloat16: two bytes that the reader widens.
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

    def __str__(self) -> str:
        return f"a result of {self.callee}"

    @property
    def name(self) -> str:
        """Return the name of the class or function, without its module; empty if a call would make it."""
        return self.callee.name if isinstance(self.callee, Global) else ""

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return one of its attributes."""
        return self.state.get(attribute, default) if isinstance(self.state, dict) else default


def attribute(value: Any, name: str) -> Any:
    """Return an attribute of a recorded object; None for any other value."""
    return value.get(name) if isinstance(value, Call) else None

"""Arrays that are computed later: arithmetic in the style of numpy which writes ONNX nodes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from app.graphs.protobuf import ELEMENT_TYPES, Attribute, message, node, number, text, value_info
from app.types import Array

Number = float | int | Array


class Writer:
    """The nodes and constants of a graph in the order of their use. Names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0
        self.nodes: list[bytes] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.constants: dict[str, Array] = {}  # by name

    def input(self, name: str, dtype: Any) -> "Value":
        """A value that something else computes."""
        return Value(self, name, np.dtype(dtype))

    def constant(self, value: Any, dtype: Any) -> "Value":
        """A number or an array, written once however often it is used."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._name("constant")
            self.constants[self._constants[key]] = array
        return Value(self, self._constants[key], array.dtype)

    def add(
        self, operator: str, *inputs: "Value", dtype: Any = None, output: str = "", **attributes: Attribute
    ) -> "Value":
        """A node with one output, of the type of its first input unless `dtype` is given."""
        name = output or self._name(operator)
        self.nodes.append(message(1, node(operator, [each.name for each in inputs], name, **attributes)))
        return Value(self, name, np.dtype(dtype or inputs[0].dtype))

    def concat(self, parts: Sequence["Value"], axis: int) -> "Value":
        """Join arrays along an axis."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=axis)

    def vector(self, numbers: Sequence["Value | int"]) -> "Value":
        """An int64 vector of scalars, some of which may be computed."""
        if all(isinstance(each, int) for each in numbers):
            return self.constant(numbers, np.int64)
        values = [each if isinstance(each, Value) else self.constant(each, np.int64) for each in numbers]
        return self.concat([each.unsqueezed(0) for each in values], axis=0)

    def range(self, start: "Value | int", stop: "Value | int") -> "Value":
        """The whole numbers from `start` to before `stop`."""
        both = [each if isinstance(each, Value) else self.constant(each, np.int64) for each in (start, stop)]
        return self.add("Range", *both, self.constant(1, np.int64))

    def loop(self, count: "Value", body: Callable[["Value"], "Value"]) -> "Value":
        """Stack `body(0)` to `body(count - 1)`, which have one shape, along a new first axis."""
        index, kept, keep = (self._name(each) for each in ("index", "kept", "keep"))
        with self._inner() as nodes:
            result = body(Value(self, index, np.dtype(np.int64)))
            nodes.append(message(1, node("Identity", [kept], keep)))
        inputs = [value_info(index, np.int64, ()), value_info(kept, np.bool_, ())]
        outputs = [value_info(keep, np.bool_, ()), _unshaped(result)]
        graph = _graph("body", nodes, inputs, outputs)
        return self.add("Loop", count, self.constant(True, np.bool_), dtype=result.dtype, body=graph)

    def choose(
        self, condition: "Value", then: Callable[[], "Value"], otherwise: Callable[[], "Value"]
    ) -> "Value":
        """Compute one of two values, and not the other."""
        graphs, dtype = [], np.dtype(np.float32)
        for branch in (then, otherwise):
            with self._inner() as nodes:
                result = branch()
            dtype = result.dtype
            graphs.append(_graph("branch", nodes, [], [_unshaped(result)]))
        return self.add("If", condition, dtype=dtype, then_branch=graphs[0], else_branch=graphs[1])

    @contextmanager
    def _inner(self) -> Iterator[list[bytes]]:
        """Collect the nodes of a graph within the graph; constants stay outside."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}.{kind}.{self._count}"


def _graph(name: str, nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    return b"".join(
        [*nodes, text(2, name), *(message(11, each) for each in inputs), *(message(12, o) for o in outputs)]
    )


def _unshaped(value: "Value") -> bytes:
    """The ValueInfoProto of an output with as many sides as it turns out to have."""
    kind = number(1, ELEMENT_TYPES[value.dtype])
    return text(1, value.name) + message(2, message(1, kind))


class Value:
    """The future result of a node. A plain number beside it takes its type.

    `//` divides whole numbers towards zero, as ONNX does.
    """

    def __init__(self, writer: Writer, name: str, dtype: np.dtype[Any]) -> None:
        self.writer = writer
        self.name = name
        self.dtype = dtype

    def _with(
        self, operator: str, other: "Value | Number", *, turned: bool = False, dtype: Any = None
    ) -> "Value":
        second = other if isinstance(other, Value) else self.writer.constant(other, self.dtype)
        both = (second, self) if turned else (self, second)
        return self.writer.add(operator, *both, dtype=dtype)

    def __add__(self, other: "Value | Number") -> "Value":
        return self._with("Add", other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self._with("Sub", other)

    def __rsub__(self, other: Number) -> "Value":
        return self._with("Sub", other, turned=True)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self._with("Mul", other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self._with("Div", other)

    def __rtruediv__(self, other: Number) -> "Value":
        return self._with("Div", other, turned=True)

    def __floordiv__(self, other: "Value | Number") -> "Value":
        return self._with("Div", other)

    def __mod__(self, other: "Value | Number") -> "Value":
        return self._with("Mod", other)

    def __matmul__(self, other: "Value") -> "Value":
        return self._with("MatMul", other)

    def __lt__(self, other: "Value | float") -> "Value":
        return self._with("Less", other, dtype=np.bool_)

    def __ge__(self, other: "Value | float") -> "Value":
        return self._with("GreaterOrEqual", other, dtype=np.bool_)

    def __gt__(self, other: "Value | float") -> "Value":
        return self._with("Greater", other, dtype=np.bool_)

    def __le__(self, other: "Value | float") -> "Value":
        return self._with("LessOrEqual", other, dtype=np.bool_)

    def __and__(self, other: "Value") -> "Value":
        return self._with("And", other)

    def maximum(self, other: "Value | Number") -> "Value":
        """The larger of both, element by element."""
        return self._with("Max", other)

    def minimum(self, other: "Value | Number") -> "Value":
        """The smaller of both, element by element."""
        return self._with("Min", other)

    def floor(self) -> "Value":
        """The next smaller whole number, of the same type."""
        return self.writer.add("Floor", self)

    def round(self) -> "Value":
        """The nearest whole number, halves to the even one, of the same type."""
        return self.writer.add("Round", self)

    def abs(self) -> "Value":
        """The number without its sign."""
        return self.writer.add("Abs", self)

    def sin(self) -> "Value":
        """The sine."""
        return self.writer.add("Sin", self)

    def cos(self) -> "Value":
        """The cosine."""
        return self.writer.add("Cos", self)

    def to(self, dtype: Any) -> "Value":
        """The same numbers in another type; fractions are cut off."""
        if self.dtype == np.dtype(dtype):
            return self
        return self.writer.add("Cast", self, dtype=dtype, to=ELEMENT_TYPES[np.dtype(dtype)])

    def where(self, condition: "Value", otherwise: "Value | Number" = 0) -> "Value":
        """These numbers where the condition holds, else the others."""
        other = otherwise if isinstance(otherwise, Value) else self.writer.constant(otherwise, self.dtype)
        return self.writer.add("Where", condition, self, other, dtype=self.dtype)

    def reduced(self, operator: str, axis: int, *, keep: bool = False) -> "Value":
        """ReduceSum, ReduceMin or ReduceMax along an axis."""
        axes = self.writer.constant([axis], np.int64)
        return self.writer.add(operator, self, axes, keepdims=int(keep))

    def unsqueezed(self, *axes: int) -> "Value":
        """With new axes of length 1."""
        return self.writer.add("Unsqueeze", self, self.writer.constant(axes, np.int64))

    def reshaped(self, *sides: "Value | int") -> "Value":
        """In another shape; a side may be computed, and one may be -1."""
        return self.writer.add("Reshape", self, self.writer.vector(sides))

    def transposed(self, *order: int) -> "Value":
        """With its axes in another order."""
        return self.writer.add("Transpose", self, perm=order)

    def take(self, indexes: "Value | int", axis: int = 0) -> "Value":
        """The elements at these places of an axis; of one place, without that axis."""
        places = indexes if isinstance(indexes, Value) else self.writer.constant(indexes, np.int64)
        return self.writer.add("Gather", self, places, axis=axis)

    def sliced(self, *bounds: tuple[int, "Value | int", "Value | int"]) -> "Value":
        """The part between bounds, each (axis, start, stop)."""
        axes = self.writer.constant([axis for axis, _, _ in bounds], np.int64)
        starts, stops = (self.writer.vector([bound[which] for bound in bounds]) for which in (1, 2))
        return self.writer.add("Slice", self, starts, stops, axes)

    def side(self, axis: int) -> "Value":
        """The length of an axis, an int64 scalar."""
        return self.writer.add("Shape", self, dtype=np.int64, start=axis, end=axis + 1).reshaped()

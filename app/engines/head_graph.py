"""The head as ONNX nodes behind the body's, so that ONNX Runtime computes both in one piece.

The same numbers as `head.Head`, which is kept for the gradients of heat maps.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import assert_never

import numpy as np

from app.engines.head import Head
from app.engines.layers import (
    GELU,
    SLOPE,
    BatchNorm,
    HardSwish,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    ReLU,
    SiLU,
    Tanh,
)
from app.graphs.protobuf import extension, node
from app.types import Array, Arrays

OPERATORS = {HardSwish: "HardSwish", GELU: "Gelu", Tanh: "Tanh", ReLU: "Relu"}  # of ONNX
FEATURES, POOLED, SCORES = "features", "pooled", "scores"  # (N, C, h, w), (N, features), (N, outputs)


def head_graph(head: Head, multi_label: bool = False) -> tuple[bytes, Arrays]:
    """The bytes after a body's graph, and the arrays to bind: from its output `features` to two more,
    `pooled` and `scores`, which are probabilities.
    """
    writer = _Writer()
    mapped = writer.layers(head.before, FEATURES, on_map=True)
    writer.pool(head, mapped)
    logits = writer.layers(head.layers, POOLED)
    writer.add("Sigmoid" if multi_label else "Softmax", [logits], SCORES)
    return extension(writer.nodes, writer.weights, (POOLED, SCORES)), writer.weights


def _folded(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yield the layers, each BatchNorm taken into the Linear behind it: y = W (x * scale + shift) + b."""
    norm = None
    for layer, following in zip_longest(layers, layers[1:]):
        if isinstance(layer, BatchNorm) and isinstance(following, Linear):
            norm = layer
        elif norm and isinstance(layer, Linear):
            yield Linear(layer.weight * norm.scale, layer.weight @ norm.shift + layer.bias, layer.relu)
            norm = None
        else:
            yield layer


class _Writer:
    """The nodes so far, and the arrays that they read."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.weights: dict[str, Array] = {}

    def add(self, operator: str, inputs: Sequence[str | Array], output: str = "", **attributes: float) -> str:
        """A node; its output's name. Arrays among the inputs become weights."""
        names = [self._weight(each) if isinstance(each, np.ndarray) else each for each in inputs]
        output = output or f"head.{len(self.nodes)}"
        self.nodes.append(node(operator, names, output, **attributes))
        return output

    def _weight(self, array: Array) -> str:
        name = f"head.weight.{len(self.weights)}"
        self.weights[name] = array
        return name

    def layers(self, layers: Sequence[Layer], x: str, *, on_map: bool = False) -> str:
        """The layers on (N, features); `on_map`: on each position of (N, C, h, w)."""
        for layer in _folded(layers):
            match layer:
                case BatchNorm():
                    x = self.add("Add", [self.add("Mul", [x, layer.scale]), layer.shift])
                case Linear() if on_map:
                    x = self.add("Conv", [x, layer.weight[:, :, np.newaxis, np.newaxis], layer.bias])
                case Linear():
                    x = self.add("Gemm", [x, layer.weight, layer.bias], transB=1)
                case LayerNorm():
                    epsilon = layer.epsilon
                    x = self.add("LayerNormalization", [x, layer.weight, layer.bias], axis=1, epsilon=epsilon)
                case SiLU():
                    x = self.add("Mul", [x, self.add("Sigmoid", [x])])
                case LeakyReLU():
                    x = self.add("LeakyRelu", [x], alpha=float(SLOPE))
                case HardSwish() | GELU() | Tanh() | ReLU():
                    x = self.add(OPERATORS[type(layer)], [x])
                case _:
                    assert_never(layer)  # mypy names a kind of layer that is missing here
            if isinstance(layer, Linear) and layer.relu:
                x = self.add("Relu", [x])
        return x

    def pool(self, head: Head, x: str) -> None:
        """What `Head.pooled` does to a map."""
        if head.pool == "none":
            self.add("Identity", [x], POOLED)
        elif head.grid > 1:
            rows, columns = (self._windows(x, head.grid, axis) for axis in (2, 3))
            across = self.add("MatMul", [x, self.add("Transpose", [columns])])
            self.add("Flatten", [self.add("MatMul", [rows, across])], POOLED)
        elif head.pool == "average":
            self.add("Flatten", [self.add("GlobalAveragePool", [x])], POOLED)
        else:
            both = [self.add(f"Global{kind}Pool", [x]) for kind in ("Max", "Average")]
            self.add("Flatten", [self.add("Concat", both, axis=1)], POOLED)

    def _windows(self, x: str, grid: int, axis: int) -> str:
        """(grid, side) shares of the positions along an axis of a map in each window of torch's
        `adaptive_avg_pool2d`.
        """
        numbers = np.arange(grid, dtype=np.int64)[:, np.newaxis]
        side = self.add("Shape", [x], start=axis, end=axis + 1)
        starts = self.add("Div", [self.add("Mul", [side, numbers]), np.array([grid])])
        # the quotient rounded up
        raised = self.add("Add", [self.add("Mul", [side, numbers + 1]), np.array([grid - 1])])
        ends = self.add("Div", [raised, np.array([grid])])
        places = self.add("Range", [np.array(0), self.add("Squeeze", [side]), np.array(1)])
        inside = [self.add("GreaterOrEqual", [places, starts]), self.add("Less", [places, ends])]
        shares = self.add("Cast", [self.add("And", inside)], to=1)
        return self.add("Div", [shares, self.add("Cast", [self.add("Sub", [ends, starts])], to=1)])

"""From the graph that torch exports to one that ONNX Runtime fuses in full, its weights still by their names.

Imports onnx, onnx_ir and onnxscript, and only inside its functions: serving needs none.
"""

import importlib
import math
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx

MIN_MASK: Final = 5_000  # numbers
MAX_SHARED: Final = 1_000_000  # numbers of a table
DIMENSIONS: Final = ("batch", "channels", "height", "width")


def optimize(graph: "onnx.ModelProto", weights: Sequence[str], same_padded: Set[str]) -> "onnx.ModelProto":
    """Simplify a graph as `torch.onnx.export(optimize=True)` does, but leave `weights` as initializers.

    onnxscript computes all constants, also those made of weights, such as swin's table of positions.
    So the weights become inputs of the graph meanwhile. A BatchNorm stays behind its convolution: ONNX
    Runtime folds it with the numbers of the checkpoint. The convolutions whose weights are in `same_padded`
    pad their inputs to the size that TensorFlow's "SAME" gives.
    """
    ir = importlib.import_module("onnx_ir")
    model = ir.from_proto(graph)
    bound = {}
    for name in weights:
        if (value := model.graph.initializers.pop(name, None)) is None:  # torch drops some that nothing reads
            continue
        bound[name], value.const_value = value.const_value, None
        model.graph.inputs.append(value)
    _pad_to_same(model, same_padded)
    importlib.import_module("onnxscript.optimizer").optimize(model)
    passes = importlib.import_module("onnx_ir.passes.common")
    passes.DeduplicateInitializersPass(size_limit=MAX_SHARED)(model)  # swin repeats its tables of positions
    _shrink_masks(model)
    _name_dimensions(model)
    for value in [value for value in model.graph.inputs if value.name in bound]:
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = bound[value.name]
            model.graph.initializers[value.name] = value
    return ir.to_proto(model)


def _pad_to_same(model: Any, weights: Set[str]) -> None:
    """Let the convolutions with these weights pad by themselves: ONNX calls it SAME_UPPER."""
    ir = importlib.import_module("onnx_ir")
    for node in model.graph:
        if node.op_type == "Conv" and node.inputs[1].name in weights:
            node.attributes.pop("pads", None)  # ONNX allows one of the two
            node.attributes.add(ir.AttrString("auto_pad", "SAME_UPPER"))


def _shrink_masks(model: Any) -> None:
    """Compute the masks of shifted windows, a number for each pair of positions, from a number for each."""
    ir = importlib.import_module("onnx_ir")
    for name, value in list(model.graph.initializers.items()):
        sides: Sequence[int] = value.const_value.shape if value.const_value else ()
        if len(sides) != 3 or len(set(sides[1:])) > 1 or math.prod(sides) < MIN_MASK:
            continue
        mask = value.const_value.numpy()
        if len(low := np.unique(mask)) != 2:
            continue
        first = (mask == low[1]).argmax(axis=2)  # of the positions that each one sees
        if not np.array_equal(np.where(first[:, :, None] == first[:, None, :], low[1], low[0]), mask):
            continue
        tape = ir.tape.Tape()
        parts = {"regions": first.astype(np.uint8), "rows": np.array([2]), "columns": np.array([1])}
        parts |= {"seen": low[1], "hidden": low[0]}
        made = {}
        for part, array in parts.items():
            made[part] = ir.Value(name=f"{name}.{part}", const_value=ir.tensor(array, name=f"{name}.{part}"))
            model.graph.initializers[made[part].name] = made[part]
        regions = tape.op("Cast", [made["regions"]], {"to": ir.DataType.INT32})
        sides = [tape.op("Unsqueeze", [regions, made[part]]) for part in ("rows", "columns")]
        new = tape.op("Where", [tape.op("Equal", sides), made["seen"], made["hidden"]])
        for number, node in enumerate(tape.nodes):
            node.outputs[0].name = f"{name}.{number}"
        model.graph.insert_before(model.graph[0], tape.nodes)
        ir.convenience.replace_all_uses_with(value, new)
        del model.graph.initializers[name]


def _name_dimensions(model: Any) -> None:
    """Call the dimensions of the pixels that are not fixed by their names; ONNX Runtime infers the rest."""
    ir = importlib.import_module("onnx_ir")
    pixels = model.graph.inputs[0]
    pixels.shape = ir.Shape(
        [side if isinstance(side, int) else name for name, side in zip(DIMENSIONS, pixels.shape, strict=True)]
    )
    for output in model.graph.outputs:
        output.shape = ir.Shape([None] * len(output.shape))

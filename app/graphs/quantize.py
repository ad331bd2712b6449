"""From the weightless graph of a body to its two companions for int8: one that computes in int8, and one that
tells the ranges of the numbers between its layers. Both are made by ONNX Runtime's own quantization.

Imports onnx, and only inside its functions: serving needs none.
"""

import importlib
import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.graphs.export import weightless, write
from app.graphs.graph import EPSILON

if TYPE_CHECKING:
    import onnx

LAYERS: Final = {"Conv", "BatchNormalization", "Relu", "Add", "MaxPool"}  # of which a body may be made
FILLED: Final = ("_quantized", "_scale", "_zero_point")  # the ends of names that depend on weights and photos
ALWAYS_ZERO: Final = ("weight_zero_point", "bias_quantized_zero_point")


def quantize_graph(path: Path) -> bool:
    """Write `<architecture>.int8.onnx` and `<architecture>.ranges.onnx` beside the .onnx file at `path`, and
    what fills the first into its .json file.

    Its Convs have taken in the BatchNorm behind them. Returns False, and writes nothing, where the body has
    other layers than those of resnets, or a Conv without such a BatchNorm behind it.
    """
    onnx = importlib.import_module("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    body, ranges = (onnx.load(path, load_external_data=False) for _ in range(2))
    if not (_has_plain_layers(body) and _has_norm_behind_each_conv(body)):
        return False
    norms = _fold(body)
    with tempfile.TemporaryDirectory() as folder:
        filled, quantized = (str(Path(folder) / name) for name in ("filled", "quantized"))
        onnx.save(body, filled)
        quantization.quantize_static(
            filled,
            quantized,
            _Noise(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        int8 = onnx.load(quantized)
    names = {tensor.name for tensor in int8.graph.initializer}
    bound = {name for name in names if name.endswith(FILLED) and not name.endswith(ALWAYS_ZERO)}
    write(path.with_suffix(".int8.onnx"), weightless(int8, bound)[0].SerializeToString())
    tensors = sorted(name.removesuffix("_zero_point") for name in bound if name.endswith("_zero_point"))
    for name, end in product(tensors, ("Min", "Max")):
        found = f"{name}_Reduce{end}"
        ranges.graph.node.append(onnx.helper.make_node(f"Reduce{end}", [name], [found], keepdims=0))
        ranges.graph.output.append(onnx.helper.make_tensor_value_info(found, onnx.TensorProto.FLOAT, []))
    write(path.with_suffix(".ranges.onnx"), ranges.SerializeToString())
    description = json.loads(path.with_suffix(".json").read_text())
    convolutions = {name: (norms[name], read) for name, read in _reads(int8).items()}
    description["int8"] = {"convolutions": convolutions, "tensors": tensors}
    write(path.with_suffix(".json"), f"{json.dumps(description, separators=(',', ':'))}\n".encode())
    return True


def _has_plain_layers(body: "onnx.ModelProto") -> bool:
    return {node.op_type for node in body.graph.node} <= LAYERS


def _has_norm_behind_each_conv(body: "onnx.ModelProto") -> bool:
    """Whether each Conv has a BatchNorm, and each of these the epsilon that `precision` folds it with."""
    norms = [node for node in body.graph.node if node.op_type == "BatchNormalization"]
    convs = {node.output[0] for node in body.graph.node if node.op_type == "Conv"}
    epsilons = {field.f for node in norms for field in node.attribute if field.name == "epsilon"}
    return convs == {node.input[0] for node in norms} and epsilons == {float(EPSILON)}


def _reads(int8_graph: "onnx.ModelProto") -> dict[str, str]:
    """For each Conv, by the name of its module, the tensor whose scale its input has: a MaxPool has none of
    its own.
    """
    made = {name: node for node in int8_graph.graph.node for name in node.output}
    reads = {}
    for node in int8_graph.graph.node:
        if node.op_type == "Conv":
            # the inputs of the two DequantizeLinear before it: numbers, their scale, their zero point
            pixels, weight = (made[name].input for name in node.input[:2])
            reads[weight[0].removesuffix(".weight_quantized")] = pixels[1].removesuffix("_scale")
    return reads


def _fold(body: "onnx.ModelProto") -> dict[str, str]:
    """Take each BatchNorm into the Conv before it; the weights become noise.

    Returns for each Conv, by the name of its module, that of its BatchNorm.
    """
    onnx = importlib.import_module("onnx")
    random = np.random.default_rng(0)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in body.graph.initializer}
    norms = {node.input[0]: node for node in body.graph.node if node.op_type == "BatchNormalization"}
    layers, taken, numbers = [], {}, []
    for node in body.graph.node:
        if node.op_type == "Conv":
            norm, weight = norms[node.output[0]], node.input[1]
            name = weight.removesuffix(".weight")
            taken[name] = norm.input[1].removesuffix(".weight")
            node.input[2:] = [f"{name}.bias"]
            node.output[0] = norm.output[0]
            for kind, shape in (("weight", shapes[weight]), ("bias", shapes[weight][:1])):
                noise = random.normal(0, 0.05, shape).astype(np.float32)  # small: it passes many layers
                numbers.append(onnx.numpy_helper.from_array(noise, f"{name}.{kind}"))
        if node.op_type in LAYERS - {"BatchNormalization"}:
            layers.append(node)
    for field, kept in ((body.graph.node, layers), (body.graph.initializer, numbers)):
        del field[:]
        field.extend(kept)
    return taken


class _Noise:
    """One picture of noise: only names remain of the tool's measurements."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
        self._pictures: Iterator[dict[str, Any]] = iter([{"pixels": noise}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._pictures, None)

"""From fastai and torch to a weightless graph: the bodies that are shipped, and any other, once.

Imports torch, fastai, timm and onnx, and only inside its functions: serving a shipped architecture needs
none.
"""

import importlib
import json
import logging
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.checkpoints.fingerprint import layers_of
from app.checkpoints.records import Call
from app.graphs.bodies import find_body, import_fastai, in_one_sentence
from app.graphs.graph import COUNTER, WHOLE, Shown
from app.graphs.module_builder import build_module
from app.graphs.optimize import optimize
from app.photos.transforms import USUAL_SIZE
from app.types import Arrays, Size

if TYPE_CHECKING:
    import onnx
    import torch

OPSET: Final = 20  # the first with Gelu
# Warns with a traceback of each inequality between sides of a picture that it leaves as it is.
WARNER: Final = "torch.fx.experimental.symbolic_shapes"

# --- the graph of a body ------------------------------------------------------------------------------------


def export_graph(architecture: str, folder: Path) -> Path:
    """Write `<architecture>.onnx`, the body without weights, and `<architecture>.json`, what `graphs` reads.

    Returns the path of the .onnx file. Raises ArchitectureUnknown, ToolMissing.
    """
    body = find_body(architecture)
    more = {"head": body.head, "prefixes": body.prefixes}
    with in_one_sentence(f"torch cannot export {architecture}"):
        return _export(body.module, architecture, folder, Shown(size=body.size), more, body.unused)


def export_module(
    module: Call,
    arrays: Arrays,
    name: str,
    folder: Path,
    shown: Shown,
) -> Path:
    """Write the graph of a whole network, rebuilt from the module tree of an export, as `<name>.onnx` and
    `.json`.

    Raises ArchitectureUnknown where the tree has classes that are not rebuilt or cannot be exported,
    ToolMissing.
    """
    torch = importlib.import_module("torch")
    import_fastai()
    with in_one_sentence("The network in the file cannot be rebuilt and exported"):
        model = build_module(module, arrays).eval()
        with torch.no_grad():
            outputs = model(torch.zeros(2, shown.channels, *(shown.size or USUAL_SIZE)))
        if outputs.ndim != 2:
            raise ValueError(f"it answers with the shape {list(outputs.shape)}")
        return _export(model, name, folder, shown, {"head": list(WHOLE), "prefixes": {}})


def _export(
    model: "torch.nn.Module",
    name: str,
    folder: Path,
    shown: Shown,
    more: dict[str, Any],
    unused: Sequence[str] = (),
) -> Path:
    """The two files of a graph, in one go: first the .onnx, since the .json says that both are there."""
    torch = importlib.import_module("torch")
    modules = list(model.named_modules(remove_duplicate=False))
    layers = layers_of((name, type(module).__name__, vars(module)) for name, module in modules)
    # with one size its paddings are numbers, and the windows of adaptive pools are fitted to the padded map
    same_padded = set() if shown.size else _without_same_padding(model)
    pixels = torch.zeros(2, shown.channels, *(shown.size or USUAL_SIZE))
    size = shown.size
    try:
        program = _program(model, pixels, size)
    except Exception:
        if size:
            raise
        size = USUAL_SIZE  # what depends on the size of the picture is exported for one
        _restore_same_padding(model, same_padded)
        same_padded = set()
        program = _program(model, pixels, size)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    expected = {name: list(tensor.shape) for name, tensor in state.items()}
    # whole numbers are indexes, which belong to the architecture: they stay in the graph
    numbers = [name for name, tensor in state.items() if tensor.is_floating_point()]
    proto, bound = weightless(optimize(program.model_proto, numbers, same_padded), set(numbers))
    with torch.no_grad():
        channels = model(pixels).shape[1]
    description = {
        "architecture": name,
        "channels": channels,
        "size": size,
        **more,
        "layers": layers,
        "unused": sorted((expected.keys() - bound).union(unused)),
        "weights": {name: shape for name, shape in expected.items() if name in bound},
    }
    path = folder / f"{name}.onnx"
    write(path, proto.SerializeToString())
    write(folder / f"{name}.json", f"{json.dumps(description, separators=(',', ':'))}\n".encode())
    return path


def _program(model: "torch.nn.Module", pixels: "torch.Tensor", size: Size | None) -> Any:
    """The ONNX program of a network: for batches of any size, and for pictures of any unless one is given."""
    torch = importlib.import_module("torch")
    logging.getLogger(WARNER).setLevel(logging.ERROR)
    dynamic = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    return torch.onnx.export(
        model,
        (pixels,),
        dynamo=True,
        optimize=False,  # it would fold the weights of this one model into the graph
        dynamic_shapes=({**dynamic},),
        input_names=["pixels"],
        output_names=["features"],
        opset_version=OPSET,
        verbose=False,
    )


def _without_same_padding(model: "torch.nn.Module") -> set[str]:
    """Turn timm's convolutions with TensorFlow's "SAME" padding into such without padding, since it exports
    as dozens of nodes for each. Returns the names of their weights.
    """
    layers = importlib.import_module("timm.layers.conv2d_same")
    torch = importlib.import_module("torch")
    found = set()
    for name, module in model.named_modules():
        if type(module) is layers.Conv2dSame:
            module.__class__ = torch.nn.Conv2d  # which it is, but for its `forward`
            found.add(f"{name}.weight")
    return found


def _restore_same_padding(model: "torch.nn.Module", weights: Set[str]) -> None:
    """Undo `_without_same_padding`."""
    layers = importlib.import_module("timm.layers.conv2d_same")
    for weight in weights:
        model.get_submodule(weight.removesuffix(".weight")).__class__ = layers.Conv2dSame


def write(path: Path, content: bytes) -> None:
    """Whole or not at all: another process may be reading."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def weightless(proto: "onnx.ModelProto", names: set[str]) -> "tuple[onnx.ModelProto, set[str]]":
    """The graph with its initializers in `names` emptied and marked as external, and which those are."""
    onnx = importlib.import_module("onnx")
    bound = set()
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            bound.add(tensor.name)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="bound-from-memory")
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")  # the exporter's notes, with paths of the machine it ran on
    proto.graph.ClearField("value_info")
    del proto.functions[:]
    return proto, bound

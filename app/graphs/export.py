"""From fastai and torch to a weightless graph: the bodies that are shipped, and any other, once.

Imports torch, fastai, timm and onnx, and only inside its functions: serving a shipped architecture needs
none.
"""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.checkpoints.records import Call
from app.errors import ArchitectureUnknown, ToolMissing, plain
from app.graphs.graph import COUNTER, WHOLE, Shown
from app.graphs.module_builder import build_module
from app.graphs.optimize import optimize
from app.types import Arrays

if TYPE_CHECKING:
    import onnx
    import torch

OPSET: Final = 20  # the first with Gelu
TIMM: Final = "timm."

# The heads of the libraries' own models: torchvision's `forward` of each class, 0.28;
# timm's `forward_head`, 1.0.
TORCHVISION_HEADS: Final = {
    "ResNet": ["average 1", "linear fc"],
    "RegNet": ["average 1", "linear fc"],
    "DenseNet": ["relu", "average 1", "linear classifier"],
    "SqueezeNet": ["linear classifier.1", "relu", "average 1"],
    "AlexNet": [
        "average 6", "linear classifier.1", "relu", "linear classifier.4", "relu", "linear classifier.6",
    ],
    "VGG": [
        "average 7", "linear classifier.0", "relu", "linear classifier.3", "relu", "linear classifier.6",
    ],
    "MobileNetV3": ["average 1", "linear classifier.0", "hardswish", "linear classifier.3"],
    "MobileNetV2": ["average 1", "linear classifier.1"],
    "EfficientNet": ["average 1", "linear classifier.1"],
    "ConvNeXt": ["average 1", "norm classifier.0", "linear classifier.2"],
    "SwinTransformer": ["average 1", "linear head"],
}  # fmt: skip
TIMM_HEADS: Final = {
    "ResNet": ["average 1", "linear fc"],
    "EfficientNet": ["average 1", "linear classifier"],
    "ConvNeXt": ["average 1", "norm head.norm", "linear head.fc"],
    "VisionTransformer": ["linear head"],
}


def import_fastai() -> Any:
    """`fastai.vision.all`, with torchvision made importable where its compiled operators do not load.

    Raises ToolMissing where fastai is not installed.
    """
    try:
        importlib.import_module("torch")
        _declare_torchvision_operators()
        importlib.import_module("timm")
        return importlib.import_module("fastai.vision.all")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ToolMissing(
            f"This needs fastai and torch, and {package} is not installed: run `pip install -r "
            "requirements.txt`. Serving a shipped architecture needs neither."
        ) from error


def _declare_torchvision_operators() -> None:
    """Torchvision's wheels are compiled for one build of torch: with another its operators do not load, and
    the import fails on their missing names ("operator torchvision::nms does not exist"). Nothing here calls
    them, so their names are enough. Where they load, nothing is done.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")


def create_body(architecture: str) -> "torch.nn.Module":
    """The untrained body of a torchvision, fastai or timm architecture, as fastai cuts it, to evaluate.

    Where torchvision and timm have the same name, timm's begins with "timm.": fastai takes torchvision's as a
    function, and timm's as a string. Raises ArchitectureUnknown, ToolMissing.
    """
    vision = import_fastai()
    timm = importlib.import_module("timm")
    with _in_one_sentence(f"fastai makes no body of {architecture}"):
        if constructor := _constructor(vision, architecture):
            model = vision.create_vision_model(constructor, 2, pretrained=False)
        elif (name := architecture.removeprefix(TIMM)) in timm.list_models():
            model, _ = vision.create_timm_model(name, 2, pretrained=False)
        else:
            raise ArchitectureUnknown(
                f"Neither torchvision nor fastai nor timm has an architecture '{architecture}'; it is the "
                "second argument of vision_learner(dls, ARCHITECTURE), such as resnet34."
            )
    return model[0].eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _in_one_sentence(failure: str) -> Iterator[None]:
    """Turn any error of fastai, timm or torch into ArchitectureUnknown: `failure`, and the cause."""
    try:
        yield
    except (ArchitectureUnknown, ToolMissing):
        raise
    except Exception as error:  # the networks and the exporter raise anything
        cause = plain(error) or "without a message"
        raise ArchitectureUnknown(f"{failure} ({type(error).__name__}: {cause}).") from error


def _constructor(vision: Any, architecture: str) -> Any:
    """The function of torchvision or fastai that makes an architecture; None where there is none."""
    places = (vision.models, importlib.import_module("fastai.vision.models.xresnet"))
    found = next((getattr(place, architecture) for place in places if hasattr(place, architecture)), None)
    return found if callable(found) else None


# --- the graph of a body ------------------------------------------------------------------------------------


def export_graph(architecture: str, folder: Path) -> Path:
    """Write `<architecture>.onnx`, the body without weights, and `<architecture>.json`, what `graphs` reads.

    Returns the path of the .onnx file. Raises ArchitectureUnknown, ToolMissing.
    """
    body = create_body(architecture)
    torch = importlib.import_module("torch")
    model = torch.nn.Sequential(body).eval()  # in a Sequential, so that names begin with "0." as in the file
    # a transformer's positions have one size, and so have swin's shifted windows once they are exported
    fixed = architecture.startswith("swin") or (hasattr(body, "needs_pool") and not body.needs_pool)
    pixels = torch.zeros(2, 3, 224, 224)
    with _in_one_sentence(f"torch cannot export {architecture}"):
        prefixes, head = _own_head(architecture)
        return _export(model, architecture, folder, pixels, fixed, {"head": head, "prefixes": prefixes})


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
    model = build_module(module, arrays).eval()
    pixels = torch.zeros(2, shown.channels, *(shown.size or (224, 224)))
    with _in_one_sentence("The network in the file was rebuilt, but cannot be exported"):
        with torch.no_grad():
            outputs = model(pixels)
        if outputs.ndim != 2:
            raise ValueError(f"it answers with the shape {list(outputs.shape)}")
        more = {"head": list(WHOLE), "prefixes": {}}
        return _export(model, name, folder, pixels, shown.size is not None, more)


def _export(
    model: "torch.nn.Module",
    name: str,
    folder: Path,
    pixels: "torch.Tensor",
    fixed: bool,
    more: dict[str, Any],
) -> Path:
    """The two files of a graph, in one go: first the .onnx, since the .json says that both are there."""
    torch = importlib.import_module("torch")
    dynamic = dict.fromkeys((0,) if fixed else (0, 2, 3), torch.export.Dim.DYNAMIC)
    same_padded = _without_same_padding(model)
    program = torch.onnx.export(
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
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    expected = {name: list(tensor.shape) for name, tensor in state.items()}
    # whole numbers are indexes, which belong to the architecture: they stay in the graph
    numbers = [name for name, tensor in state.items() if tensor.is_floating_point()]
    proto, bound = weightless(optimize(program.model_proto, numbers, same_padded), set(numbers))
    description = {
        "architecture": name,
        "channels": model(pixels).shape[1],
        "size": list(pixels.shape[2:]) if fixed else None,
        **more,
        "unused": sorted(expected.keys() - bound),
        "weights": {name: shape for name, shape in expected.items() if name in bound},
    }
    path = folder / f"{name}.onnx"
    write(path, proto.SerializeToString())
    write(folder / f"{name}.json", f"{json.dumps(description, separators=(',', ':'))}\n".encode())
    return path


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


def write(path: Path, content: bytes) -> None:
    """Whole or not at all: another process may be reading."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _own_head(architecture: str) -> tuple[dict[str, str], list[str]]:
    """The library's own names for the modules of fastai's "0.": a map of prefixes; and the head that it puts
    behind the body, as the steps that `engines.head.read_head` knows. Both empty where its head is not
    understood.
    """
    vision = import_fastai()
    if constructor := _constructor(vision, architecture):
        model = constructor()
        steps = TORCHVISION_HEADS.get(type(model).__name__, [])
        names = [name for name, _ in model.named_children()][
            : len(list(create_body(architecture).children()))
        ]
        prefixes = {f"{name}.": f"0.{index}." for index, name in enumerate(names)}
        if type(model).__name__ == "ResNet":  # timm's computes the same, under other names
            prefixes |= {f"0.model.{name}.": f"0.{index}." for index, name in enumerate(names)}
    else:
        model = importlib.import_module("timm").create_model(architecture.removeprefix(TIMM))
        steps = TIMM_HEADS.get(type(model).__name__, [])
        prefixes = {"": "0.model."}
    return (prefixes, steps) if steps else ({}, [])


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

"""The networks of torchvision, fastai and timm without weights: their bodies, and the heads of the libraries.

Imports torch, torchvision, fastai and timm, and only inside its functions: serving needs none.
"""

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from app.checkpoints.fingerprint import ACTIVATIONS
from app.errors import ArchitectureUnknown, ToolMissing, plain
from app.photos.transforms import USUAL_SIZE
from app.types import Size

if TYPE_CHECKING:
    import torch

TIMM: Final = "timm."
TRANSFORMED: Final = ".transform_input"  # behind the name of a network that normalizes its input once more
AUXILIARY: Final = {"GoogLeNet": "aux", "Inception3": "AuxLogits"}  # classifiers that training alone uses
SHARED: Final = ("ResNet", "Inception3")

# fastai cuts a body at its last pooling. Those that pool in `forward` people cut by hand, as in
# `vision_learner(dls, mobilenet_v2, cut=-1)`.
CUTS: Final = {"MobileNetV2": -1, "MNASNet": -1, "ShuffleNetV2": -1}
# fastai cannot cut these at all: the body is the network up to the input of this module.
UP_TO: Final = {"MaxVit": "classifier", "VisionTransformer": "heads"}
FIXED: Final = ("MaxVit", "SwinTransformer", "VisionTransformer")  # for pictures of one size

OTHER_TASKS: Final = {  # by the package in torchvision.models
    "detection": "draws boxes or key points on a photo",
    "segmentation": "gives each pixel a class",
    "optical_flow": "compares two pictures of a film",
    "video": "takes films",
    "quantization": "computes in int8; export the network that it was made from",
}

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
    "MNASNet": ["average 1", "linear classifier.1"],
    "ShuffleNetV2": ["average 1", "linear fc"],
    "GoogLeNet": ["average 1", "linear fc"],
    "Inception3": ["average 1", "linear fc"],
    "EfficientNet": ["average 1", "linear classifier.1"],
    "ConvNeXt": ["average 1", "norm classifier.0", "linear classifier.2"],
    "SwinTransformer": ["average 1", "linear head"],
    "VisionTransformer": ["linear heads.head"],
    "MaxVit": [
        "average 1", "norm classifier.2 1e-05", "linear classifier.3", "tanh", "linear classifier.5",
    ],
    "XResNet": ["average 1", "linear 11"],
}  # fmt: skip
TIMM_HEADS: Final = {
    "ResNet": ["average 1", "linear fc"],
    "EfficientNet": ["average 1", "linear classifier"],
    "MobileNetV3": ["average 1", "linear conv_head", "act2", "linear classifier"],
    "GhostNet": ["average 1", "linear conv_head", "act2", "linear classifier"],
    "ConvNeXt": ["average 1", "norm head.norm", "linear head.fc"],
    "EdgeNeXt": ["average 1", "norm head.norm", "linear head.fc"],
    "RegNet": ["average 1", "linear head.fc"],
    "RexNet": ["average 1", "linear head.fc"],
    "ByobNet": ["average 1", "linear head.fc"],
    "DenseNet": ["average 1", "linear classifier"],
    "Xception": ["average 1", "linear fc"],
    "InceptionV4": ["average 1", "linear last_linear"],
    "VisionTransformer": ["linear head"],
    "SwinTransformer": ["linear head.fc"],
    "Beit": ["linear head"],
    "Eva": ["linear head"],
}  # fmt: skip


class Body(Struct, frozen=True):
    """A body to export: `module` is a Sequential of the body alone, so that names begin with "0.".

    `size` is the one (height, width) that it takes, None where it takes any. `prefixes` maps the names that
    the library gives to its parts to those in `module`; `head` are the steps of the library's own head, for
    `engines.head.read_head`; both are empty where that is not served. `unused` are names of the library's
    network that no graph needs, such as those of auxiliary classifiers.
    """

    module: "torch.nn.Module"
    size: Size | None
    prefixes: dict[str, str]
    head: list[str]
    unused: tuple[str, ...] = ()


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
    """Return the untrained body of an architecture, as fastai cuts it, to evaluate. Raises as `find_body`."""
    return find_body(architecture).module[0]  # type: ignore[no-any-return,index]


def find_body(architecture: str) -> Body:
    """Return the untrained body of a torchvision, fastai or timm architecture, as fastai cuts it.

    Where torchvision and timm have the same name, timm's begins with "timm.": fastai takes torchvision's as a
    function, and timm's as a string. Raises ArchitectureUnknown, ToolMissing.
    """
    import_fastai()
    with in_one_sentence(f"fastai makes no body of {architecture}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, of arguments that have changed
        if constructor := _constructor(architecture.removesuffix(TRANSFORMED)):
            return _of_constructor(constructor, architecture.endswith(TRANSFORMED))
        return _of_timm(architecture)


@contextlib.contextmanager
def in_one_sentence(failure: str) -> Iterator[None]:
    """Turn any error of fastai, timm or torch into ArchitectureUnknown: `failure`, and the cause."""
    try:
        yield
    except (ArchitectureUnknown, ToolMissing):
        raise
    except Exception as error:  # the networks and the exporter raise anything
        cause = plain(error) or "without a message"
        raise ArchitectureUnknown(f"{failure} ({type(error).__name__}: {cause}).") from error


def canonical(architecture: str) -> str:
    """Return timm's own name for one of its older names or of one set of weights: convnext_tiny for
    convnext_tiny_in22k and for convnext_tiny.fb_in22k. Any other name is returned as it is.

    Raises ToolMissing.
    """
    import_fastai()
    registry = importlib.import_module("timm.models._registry")
    if _constructor(architecture.removesuffix(TRANSFORMED)):
        return architecture
    name = architecture.removeprefix(TIMM)
    name = registry._deprecated_models.get(name, name)
    base: str = registry.get_arch_name(name)
    if not registry.is_model(base):
        return architecture
    return f"{TIMM}{base}" if _constructor(base) else base


def _constructor(architecture: str) -> Any:
    """The function of torchvision or fastai that makes a classifier; None where there is none."""
    models = importlib.import_module("torchvision.models")
    if architecture in models.list_models(module=models):
        return getattr(models, architecture)
    xresnets = importlib.import_module("fastai.vision.models.xresnet")
    found = getattr(xresnets, architecture, None)
    return found if architecture.startswith("x") and inspect.isfunction(found) else None


def _of_constructor(constructor: Any, transformed: bool) -> Body:
    """The body of a network of torchvision or of fastai's own."""
    learner = importlib.import_module("fastai.vision.learner")
    network = constructor()
    kind = type(network).__name__
    unused: tuple[str, ...] = ()
    whole = transformed or kind in UP_TO
    if kind in AUXILIARY:
        network = constructor(aux_logits=False, init_weights=False, transform_input=transformed)
        auxiliary = [name for name in constructor(init_weights=False).state_dict() if AUXILIARY[kind] in name]
        unused = tuple(f"0.{name}" if whole else name for name in auxiliary)
    head = TORCHVISION_HEADS.get(kind, [])
    if whole:
        size = USUAL_SIZE if kind in FIXED else None
        return Body(
            _up_to(network, UP_TO.get(kind, "avgpool")), size, {"": "0."} if head else {}, head, unused
        )
    names = [name for name, _ in network.named_children()]
    cut = CUTS.get(kind, learner.model_meta.get(constructor, {}).get("cut"))
    body = learner.create_body(network, cut=cut)
    prefixes = {f"{name}.": f"0.{index}." for index, name in enumerate(names[: len(body)])}
    if kind in SHARED:  # timm's computes the same, under the same names
        prefixes |= {f"0.model.{old}": new for old, new in prefixes.items()}
    size = USUAL_SIZE if kind in FIXED else None
    return Body(_alone(body), size, prefixes if head else {}, head, unused)


def _of_timm(architecture: str) -> Body:
    """The body of a network of timm."""
    timm = importlib.import_module("timm")
    learner = importlib.import_module("fastai.vision.learner")
    torch = importlib.import_module("torch")
    name = architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise ArchitectureUnknown(_unknown(architecture))
    model, configuration = learner.create_timm_model(name, 2, pretrained=False)
    body = model[0].eval()
    side = configuration["input_size"][1:]
    with torch.no_grad():
        features = body(torch.zeros(1, 3, *side))
        width = body.model.num_features
        if body.needs_pool and (features.ndim != 4 or features.shape[1] != width):
            body.needs_pool = False  # fastai cannot pool these: timm does
            features = body(torch.zeros(1, 3, *side))
    if features.ndim not in (2, 4):
        raise ArchitectureUnknown(
            f"fastai makes no body of {architecture}: its features have the shape {list(features.shape)}."
        )
    network = timm.create_model(name)
    head = _timm_head(network)
    fixed = features.ndim == 2 or type(network).__name__ in FIXED
    prefixes = {"": "0.model.", **_older_names(body.model)} if head else {}
    module = _alone(body)
    # older versions also saved the tables that newer ones compute
    unused = tuple(name for name, _ in module.named_buffers() if name not in module.state_dict())
    return Body(module, tuple(side) if fixed else None, prefixes, head, unused)


def _older_names(network: Any) -> dict[str, str]:
    """The names before timm 0.9 of the parts of a swin, which then halved its map behind each stage: of files
    of fastai, which cannot train it with newer versions.
    """
    if type(network).__name__ != "SwinTransformer":
        return {}
    older = {
        f"0.model.layers.{stage - 1}.downsample.": f"0.model.layers.{stage}.downsample."
        for stage in range(1, len(network.layers))
    }
    return {"0.model.": "0.model.", **older}


def _unknown(architecture: str) -> str:
    """Say why a name is not that of a body."""
    models = importlib.import_module("torchvision.models")
    if architecture in models.list_models():
        does = models.get_model_builder(architecture).__module__.split(".")[2]
        return (
            f"torchvision's {architecture} is not exported: it {OTHER_TASKS.get(does, 'has another task')}."
        )
    return (
        f"Neither torchvision nor fastai nor timm has a classifier '{architecture}'; it is the second "
        "argument of vision_learner(dls, ARCHITECTURE), such as resnet34."
    )


def _timm_head(network: Any) -> list[str]:
    """The steps of the head of a network of timm; none where it is not understood."""
    steps = TIMM_HEADS.get(type(network).__name__, [])
    activation = ACTIVATIONS.get(type(getattr(network, "act2", None)).__name__, "").lower()
    if not all(_has(network, step) for step in steps) or ("act2" in steps and not activation):
        return []
    return [activation if step == "act2" else step for step in steps]


def _has(network: Any, step: str) -> bool:
    """Whether a network has the module that a step names, with weights and a bias."""
    kind, *names = step.split(" ")
    if kind not in ("linear", "norm"):
        return True
    name = names[0]
    try:
        module = network.get_submodule(name)
    except AttributeError:
        return False
    return getattr(module, "weight", None) is not None and getattr(module, "bias", None) is not None


def _alone(body: Any) -> Any:
    """A Sequential of a body, so that its names begin with "0."."""
    return importlib.import_module("torch").nn.Sequential(body).eval()


def _up_to(network: Any, name: str) -> Any:
    """The network without its head: its `forward` returns the input of the module `name`."""
    whole = network.forward

    def forward(pixels: Any) -> Any:
        inputs: list[Any] = []
        hook = getattr(network, name).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            whole(pixels)
        finally:
            hook.remove()
        return inputs[0]

    network.forward = forward
    return _alone(network)

"""The layers of a network that its names and shapes do not tell: strides, paddings, epsilons, activations.

Knows the records of a pickle and the modules of torch alike, by their classes and attributes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

Layers = Mapping[str, int]  # how often a body has each layer
Found = Iterable[tuple[str, str, Mapping[str, Any]]]  # name, class and attributes of each module

# The classes of activations, old and new, by the name that they are compared under.
ACTIVATIONS: Final = {
    "HardSwish": "Hardswish", "HardSwishJit": "Hardswish", "HardSwishJitMe": "Hardswish",
    "HardSwishMe": "Hardswish", "MemoryEfficientSwish": "SiLU", "Swish": "SiLU", "SwishJit": "SiLU",
    "SwishJitMe": "SiLU", "SwishMe": "SiLU", "MishJit": "Mish", "MishJitMe": "Mish",
    "GELUTanh": "GELU (tanh)", "QuickGELU": "GELU (quick)",
} | {
    name: name
    for name in "CELU ELU GELU Hardswish LeakyReLU Mish PReLU ReLU ReLU6 SELU SiLU Softplus Tanh".split()
}  # fmt: skip
# Names of modules outside a body: heads, auxiliary classifiers, the pooling before a head.
OUTSIDE: Final = re.compile(r"(.*\.)?(fc|heads?|classifier|aux\d|AuxLogits|avgpool|global_pool)(\.|$)")


def layers_of(found: Found) -> dict[str, int]:
    """Count the layers of a body that names and shapes do not tell."""
    found = list(found)
    # fastai's second part is the head, but a whole xresnet has twelve
    head = () if any(name == "2" for name, *_ in found) else "1."
    texts = (
        _layer(kind, attributes)
        for name, kind, attributes in found
        if not (name.startswith(head) or OUTSIDE.match(name))
    )
    return dict(sorted(Counter(text for text in texts if text).items()))


def strange_layers(found: Layers, expected: Layers) -> list[str]:
    """Return the layers of a network that a graph does not have, a phrase each.

    It is empty if both compute the same. Of activations only the kinds are compared: some versions of a
    library call them as functions.
    """
    kinds = set(ACTIVATIONS.values())
    strange = [
        f"{name} in place of {_activations(expected)}" for name in found if name in kinds - expected.keys()
    ]
    if found.keys() <= kinds:  # of a script, which has the classes of its modules without their attributes
        return strange
    for name in sorted((found.keys() | expected.keys()) - kinds):
        if found.get(name, 0) != expected.get(name, 0):
            strange.append(f"{found.get(name, 0)} x {name}, expected {expected.get(name, 0)}")
    return strange


def _activations(layers: Layers) -> str:
    return " and ".join(name for name in layers if name in ACTIVATIONS.values()) or "none"


def _layer(kind: str, attributes: Mapping[str, Any]) -> str:
    """Return a text for a layer that is compared, else nothing."""
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind]
    if attributes.get("transform_input") is True:  # of torchvision's googlenet and inception_v3
        return "other statistics for the input"
    if "Conv2d" in kind and "kernel_size" in attributes:
        kernel, stride, padding = (
            _pair(attributes.get(name)) for name in ("kernel_size", "stride", "padding")
        )
        if kernel == stride == "1x1":
            return ""  # also the linear layers of some heads
        return f"{kind} {kernel}, stride {stride}, padding {padding}"
    for norm in ("BatchNorm", "LayerNorm", "GroupNorm"):
        if kind.startswith(norm) and not kind.endswith("1d") and "eps" in attributes:
            return f"{norm}, epsilon {str(attributes.get('eps'))[:10]}"
    kernel = attributes.get("kernel_size", attributes.get("filt_size"))
    if kernel is not None and re.fullmatch(r"(Max|Avg|Blur)Pool2d(Same)?|BlurPool", kind):
        return f"{kind} {_pair(kernel)}, stride {_pair(attributes.get('stride'))}"
    return ""


def _pair(value: Any) -> str:
    """Return an attribute as text; one number stands for two."""
    if isinstance(value, list | tuple):
        return "x".join(str(each)[:10] for each in value[:2])
    return f"{value}x{value}" if isinstance(value, int) else str(value)[:10]

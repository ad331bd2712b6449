"""Heads that people put on a body: a chain of layers, by the names of its weights or by its modules.

Weights do not tell the activations between them: those are read off the modules of an export, or are the
setting `head_activation`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from app.checkpoints.records import Call
from app.engines.layers import (
    GELU,
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
from app.errors import ActivationUnknown, CheckpointError
from app.graphs.graph import COUNTER, EPSILON
from app.types import Array, Arrays

ACTIVATIONS: Final[Mapping[str, tuple[Layer, ...]]] = {
    "none": (),
    "relu": (ReLU(),),
    "gelu": (GELU(),),
    "silu": (SiLU(),),
    "tanh": (Tanh(),),
    "hardswish": (HardSwish(),),
    "leaky_relu": (LeakyReLU(),),
}
CLASSES: Final = {  # of torch, by the name of the activation
    "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Tanh": "tanh", "Hardswish": "hardswish",
    "LeakyReLU": "leaky_relu",
}  # fmt: skip
# torch's own options of modules, where others change the numbers.
OPTIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "BatchNorm1d": {"eps": 1e-5},
    "GELU": {"approximate": "none"},
    "LeakyReLU": {"negative_slope": 0.01},
}
# Modules that change nothing at inference, that pool before the chain, or are the softmax behind it.
IGNORED: Final = frozenset(
    "Sequential LinBnDrop Dropout Identity Flatten AdaptiveAvgPool2d LogSoftmax Softmax".split()
)
# The second pools the maximum: a part of the first, else another network.
CONCAT: Final = ("AdaptiveConcatPool2d", "AdaptiveMaxPool2d")


def read_chain(arrays: Arrays, modules: Mapping[str, Call], activation: str) -> tuple[Layer, ...]:
    """Return the layers of a head of these arrays, which are its own alone.

    `modules` are its modules by name, in order, if the file has them; `activation` is the one between its
    linear layers, "auto" if it is not known. Raises CheckpointError where the chain is not understood, or
    depends on an activation that is not known.
    """
    tensors = _by_module(arrays)
    if modules:
        kinds = {module.name for module in modules.values()}
        if CONCAT[1] in kinds and CONCAT[0] not in kinds:
            raise CheckpointError("The head pools the maximum alone, which is not understood.")
        layers = [layer for name, module in modules.items() for layer in _of_module(name, module, tensors)]
    else:
        layers = _of_weights(tensors, activation)
    check_widths(layers)
    return tuple(layers)


def _by_module(arrays: Arrays) -> dict[str, Arrays]:
    """Return the tensors by module: numbered modules in the order of their numbers, others as in the file."""
    modules: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        module, _, tensor = name.rpartition(".")
        if tensor != COUNTER:
            modules.setdefault(module, {})[tensor] = array
    if all(name.rpartition(".")[2].isdecimal() for name in modules):
        return dict(sorted(modules.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))
    return dict(modules)


def _of_module(name: str, module: Call, tensors: Mapping[str, Arrays]) -> tuple[Layer, ...]:
    kind = module.name
    if name in tensors:
        return (_layer(name, tensors[name], epsilon_of(module, float(EPSILON))),)
    if kind in CLASSES and is_usual(module):
        return ACTIVATIONS[CLASSES[kind]]
    if kind in IGNORED or kind in CONCAT:
        return ()
    options = "" if is_usual(module) else " with other options than torch's defaults"
    raise CheckpointError(f"The head has a module {kind[:80]}{options}, which is not understood.")


def epsilon_of(module: Call | None, default: float) -> float:
    """Return the number that a norm adds to the variance: the module's, if there is one."""
    epsilon = module.get("eps") if module else None
    return epsilon if isinstance(epsilon, float) and 0 < epsilon < 1 else default


def is_usual(module: Call) -> bool:
    """Tell whether a module has torch's own options."""
    return all(module.get(name, usual) == usual for name, usual in OPTIONS.get(module.name, {}).items())


def _of_weights(modules: Mapping[str, Arrays], activation: str) -> list[Layer]:
    """Put the activation into the first gap between two linear layers: where numbers leave room for it."""
    names = list(modules)
    found = [_layer(name, modules[name]) for name in names]
    check_widths(found)  # before a setting is asked for: it would not help
    last = max((index for index, layer in enumerate(found) if isinstance(layer, Linear)), default=0)
    layers: list[Layer] = []
    waiting = False  # for the activation behind a linear layer
    for index, layer in enumerate(found):
        layers.append(layer)
        waiting = index < last and (waiting or isinstance(layer, Linear))
        if waiting and index + 1 < len(names) and _has_room(names[index], names[index + 1]):
            if activation == "auto":
                count = sum(isinstance(each, Linear) for each in found)
                raise ActivationUnknown(
                    f"The head of the file has {count} linear layers, and weights do not tell which "
                    f"activation is between them: set head_activation to one of {', '.join(ACTIVATIONS)}."
                )
            layers += ACTIVATIONS[activation]
            waiting = False
    return layers


def _has_room(before: str, after: str) -> bool:
    """Tell whether another module may stand between two: between 1 and 3, or where there are no numbers."""
    (parent, _, first), (other, _, second) = before.rpartition("."), after.rpartition(".")
    if parent != other or not (first.isdecimal() and second.isdecimal()):
        return True
    return int(second) - int(first) > 1


def _layer(name: str, tensors: Arrays, epsilon: float = float(EPSILON)) -> Layer:
    """Return the layer of a module's tensors. Raises CheckpointError for any but Linear and the two norms."""
    arrays = {key: np.require(array, np.float32, ["C", "ALIGNED"]) for key, array in tensors.items()}
    weight = np.atleast_1d(arrays.get("weight", np.empty(0, np.float32)))
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):  # a convolution of one pixel is a linear layer too
        weight = weight.reshape(weight.shape[:2])
    zeros = np.zeros(len(weight), np.float32)
    if weight.ndim == 2 and arrays.keys() <= {"weight", "bias"} and weight.size:
        bias = arrays.get("bias", zeros)
        if bias.shape == zeros.shape:
            return Linear(weight, bias, False)
    shapes = {array.shape for array in arrays.values()}
    if weight.ndim == 1 and weight.size and shapes == {weight.shape}:
        if arrays.keys() == {"weight", "bias", "running_mean", "running_var"}:
            return BatchNorm.of(arrays, epsilon)
        if arrays.keys() == {"weight", "bias"}:
            return LayerNorm(weight, arrays["bias"], epsilon)
    found = ", ".join(f"{key} {array.shape}" for key, array in list(arrays.items())[:4])
    raise CheckpointError(f"The head has a layer {name[:80]} that is not understood ({found}).")


def check_widths(layers: Sequence[Layer]) -> None:
    """Raise CheckpointError unless every layer takes as many numbers as the one before it gives."""
    width = None
    for layer in layers:
        takes, gives = sides(layer) or (width, width)
        if width not in (None, takes):
            raise CheckpointError(
                f"In the head a layer for {takes} numbers follows one that gives {width}: its layers are in "
                "another order than their names. Save the model as ONNX, or as an export."
            )
        width = gives


def sides(layer: Layer) -> tuple[int, int] | None:
    """Return how many numbers a layer takes and gives; None where it takes any."""
    match layer:
        case Linear():
            return layer.weight.shape[1], layer.weight.shape[0]
        case BatchNorm():
            return len(layer.scale), len(layer.scale)
        case LayerNorm():
            return len(layer.weight), len(layer.weight)
    return None

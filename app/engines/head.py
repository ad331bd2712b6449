"""The part after the feature map, read from the state dict, computed in numpy: pool, BatchNorm, Linear, ReLU.

Knows the heads of fastai v1 (`create_head` of 1.0: biased Linear layers) and v2 (no bias after a BatchNorm),
with any number of classes and hidden layers, `concat_pool` or not, `bn_final` or not; and those that
torchvision and timm put behind their own bodies, as the steps that a graph's description lists.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, cast

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from app.checkpoints.records import Call
from app.engines.chain import ACTIVATIONS, check_widths, epsilon_of, is_usual, read_chain, sides
from app.engines.layers import BatchNorm, Layer, LayerNorm, Linear, ReLU
from app.errors import ActivationUnknown, CheckpointError
from app.graphs.graph import COUNTER, WHOLE
from app.types import Array, Arrays, Float32

MODULES: Final = ({"weight", "bias", "running_mean", "running_var"}, {"weight", "bias"}, {"weight"})
OWN_EPSILON: Final = 1e-6  # of the LayerNorm that torchvision and timm put before convnext's linear layer
UNKNOWN_HEAD: Final = (
    "save the model as ONNX with torch.onnx.export, which holds its head, and deploy that file"
)
USUAL: Final = frozenset(  # classes of the modules in heads of fastai and torchvision, which weights tell
    "AdaptiveAvgPool2d AdaptiveConcatPool2d AdaptiveMaxPool2d BatchNorm1d Dropout Flatten Hardswish Identity "
    "LayerNorm LayerNorm2d LinBnDrop Linear ReLU Sequential".split()
)


class Head(Struct, frozen=True):
    """A head ready to compute.

    `generation` is 1 or 2: the fastai that wrote it; 0 for a head of torchvision or timm. `pool` is "concat",
    "average" or "none"; an average is taken over a `grid` of so many windows a side. `before` are layers that
    work on each position of the feature map before it is pooled. `binary` tells that the file has one output
    for two classes.
    """

    layers: tuple[Layer, ...]
    pool: str
    outputs: int
    generation: int
    grid: int = 1
    before: tuple[Layer, ...] = ()
    binary: bool = False

    def logits(self, pooled: Float32) -> Float32:
        """(N, features) of `pooled` -> (N, outputs) logits."""
        x = pooled
        for layer in self.layers:
            x = layer(x)
        return x

    def gradient(self, pooled: Float32, output: int) -> Float32:
        """d logits[:, output] / d pooled, (N, features) as `pooled`: the chain rule, layer by layer back."""
        given = [pooled]
        for layer in self.layers:
            given.append(layer(given[-1]))
        gradient = np.zeros_like(given.pop())
        gradient[:, output] = 1
        for layer, x in zip(reversed(self.layers), reversed(given), strict=True):
            gradient = layer.gradient(x, gradient)
        return gradient

    def mapped(self, features: Float32) -> Float32:
        """(N, C, h, w) feature maps -> (N, C', h, w): the input of the pooling, mostly the same."""
        for layer in self.before:
            features = np.moveaxis(layer(np.moveaxis(features, 1, -1)), -1, 1)
        return features

    def by_channel(self, pooled: Float32) -> Float32:
        """(N, features) numbers, one each of `pooled`, added up over each channel of `mapped` -> (N, C')."""
        if self.grid > 1:
            parts = pooled.reshape(len(pooled), -1, self.grid**2)
            return parts.sum(axis=2, dtype=np.float32)  # type: ignore[no-any-return]
        # of concat the maximum of every channel, then the mean of every one
        parts = pooled.reshape(len(pooled), 2 if self.pool == "concat" else 1, -1)
        return parts.sum(axis=1, dtype=np.float32)  # type: ignore[no-any-return]

    def pooled(self, features: Float32) -> Float32:
        """(N, C, h, w) feature maps, or (N, C) of a body that pools by itself -> (N, features) vectors."""
        if self.pool == "none":
            return features
        features = self.mapped(features)
        if self.grid > 1:
            return _averages(features, self.grid)
        average: Float32 = features.mean(axis=(2, 3), dtype=np.float32)
        if self.pool == "average":
            return average
        # AdaptiveConcatPool2d: the maximum first, in both generations (fastai 1.0 layers.py:174, 2.8
        # layers.py:91)
        maximum: Float32 = features.max(axis=(2, 3))
        return np.concatenate([maximum, average], axis=1)


def _averages(features: Float32, grid: int) -> Float32:
    """(N, C, h, w) -> (N, C * grid * grid): torch's `adaptive_avg_pool2d`, whose windows may overlap."""
    height, width = features.shape[2:]
    rows, columns = (
        [slice(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)] for side in (height, width)
    )
    windows = [features[:, :, row, column].mean(axis=(2, 3)) for row in rows for column in columns]
    return np.stack(windows, axis=2).reshape(len(features), -1)


def softmax(logits: Float32) -> Float32:
    """(N, classes) logits -> (N, classes) probabilities, each row with sum 1."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def sigmoid(logits: Float32) -> Float32:
    """(N, classes) logits -> (N, classes) probabilities, each by itself."""
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def read_head(
    arrays: Arrays,
    channels: int,
    own: Sequence[str] = (),
    modules: Mapping[str, Call] | None = None,
    activation: str = "auto",
) -> Head:
    """Read the head of a state dict whose body has `channels` channels and names that begin with "0.".

    That is fastai's `create_head` ("1.<index>.<name>"), the one of the body's library, in the steps `own`, or
    a chain of layers, for which `modules` and `activation` are. Raises CheckpointError for any other.
    """
    if tuple(own) == WHOLE:
        return Head((), "none", channels, 0)
    if not _outside_body(arrays):
        raise CheckpointError(
            "The file has the body of a network, but no head behind it, as for embeddings: deploy the file "
            "of the whole classifier."
        )
    modules = modules if modules and activation == "auto" else {}
    usual = all(module.name in USUAL and is_usual(module) for module in modules.values())
    if not usual:
        head = _chain_head(arrays, channels, own, modules, activation)
        return _of_two_classes(head) if head.outputs == 1 else head
    try:
        if not own or any(name.startswith("1.") for name in arrays):
            head = _fastai_head(arrays, channels)
        else:
            head = _own_head(arrays, channels, own, modules, activation)
    except ActivationUnknown:
        raise
    except CheckpointError as error:
        try:
            head = _chain_head(arrays, channels, own, modules, activation)
        except ActivationUnknown:
            raise
        except CheckpointError:
            raise error from None  # of the usual heads it says more
    return _of_two_classes(head) if head.outputs == 1 else head


def _of_two_classes(head: Head) -> Head:
    """Return a head of one output, the logit of the second class, with one of 0 for the first class: the
    softmax of both is the sigmoid of the one.
    """
    last = max(index for index, layer in enumerate(head.layers) if isinstance(layer, Linear))
    if any(isinstance(layer, BatchNorm | LayerNorm) for layer in head.layers[last:]):
        raise CheckpointError(f"The head has one output and a norm behind it: {UNKNOWN_HEAD}.")
    linear = cast(Linear, head.layers[last])
    weight, bias = (np.concatenate([np.zeros_like(part), part]) for part in (linear.weight, linear.bias))
    return replace(head, layers=(*head.layers[:last], Linear(weight, bias, False)), outputs=2, binary=True)


def _chain_head(
    arrays: Arrays, channels: int, own: Sequence[str], modules: Mapping[str, Call], activation: str
) -> Head:
    """Read a head as a chain of layers behind the pooling of fastai, or of the steps `own`."""
    if activation == "auto" and not modules:  # what is asked for must help
        _chain_head(arrays, channels, own, modules, "none")
    fastai = {name: array for name, array in arrays.items() if name.startswith("1.")}
    layers = read_chain(fastai or _outside_body(arrays), modules, activation)
    linear = [layer for layer in layers if isinstance(layer, Linear)]
    if not linear:
        raise CheckpointError(f"The file has no linear layer behind its body: {UNKNOWN_HEAD}.")
    steps = [step.partition(" ") for step in own]
    grid = next((int(argument) for kind, _, argument in steps if kind == "average"), 1)
    first = next(each[0] for layer in layers if (each := sides(layer)))
    mapped = not own or any(kind == "average" for kind, *_ in steps)
    pools = {channels * grid**2: ("average", grid), channels: ("average" if mapped else "none", 1)}
    if fastai:
        pools[channels * 2] = ("concat", 1)
    before: tuple[Layer, ...] = ()
    if steps and not fastai and (steps[0][0] != "average" and mapped):
        if steps[0][0] != "relu" or steps[1][0] != "average":
            raise CheckpointError(f"The head is another one than its library puts there: {UNKNOWN_HEAD}.")
        before = (ReLU(),)
    if first not in pools:
        raise CheckpointError(f"The head takes {first} features, the body gives {channels}: {UNKNOWN_HEAD}.")
    pool, grid = pools[first]
    return Head(layers, pool, len(linear[-1].weight), 2 if fastai else 0, grid, before)


def _outside_body(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith("0.")}


def _fastai_head(arrays: Arrays, channels: int) -> Head:
    """Read the head of fastai's `create_head`. Raises CheckpointError for any other."""
    modules = _modules(arrays)
    kinds = [(index, "norm" if "running_mean" in module else "linear") for index, module in modules.items()]
    _check_order(kinds)
    last_linear = max(index for index, kind in kinds if kind == "linear")
    layers = tuple(
        BatchNorm.of({name: _float32(array) for name, array in modules[index].items()})
        if kind == "norm"
        else _linear(modules[index], relu=index != last_linear)
        for index, kind in kinds
    )
    first = layers[0]
    inputs = len(first.scale) if isinstance(first, BatchNorm) else first.weight.shape[1]
    pools = {channels * 2: "concat", channels: "average" if kinds[0][0] >= 2 else "none"}
    if inputs not in pools:
        raise CheckpointError(
            f"The head takes {inputs} features, but the body gives {channels}; expected {channels} or "
            f"{2 * channels}: {UNKNOWN_HEAD}."
        )
    check_widths(layers)
    # v1 gives every Linear a bias, v2 none to the one behind a BatchNorm (1.0.50 layers.py:44, 2.8
    # layers.py:178)
    behind_norm = (last_linear, "linear") in [
        after for before, after in pairwise(kinds) if before[1] == "norm"
    ]
    generation = 1 if behind_norm and "bias" in modules[last_linear] else 2
    outputs = modules[last_linear]["weight"].shape[0]
    return Head(layers, pools[inputs], outputs, generation)


def _own_head(
    arrays: Arrays, channels: int, steps: Sequence[str], modules: Mapping[str, Call], activation: str
) -> Head:
    """Read the head of a library's own model. Its steps are "relu", "hardswish", "tanh", "average <grid>",
    and "linear" or "norm" with the name of a module; a norm may have its epsilon behind that. In place of a
    linear layer there may be a chain.
    """
    width = channels
    rest = _outside_body(arrays)
    layers: list[Layer] = []
    before: tuple[Layer, ...] = ()
    pool, grid, outputs = "none", 1, 0
    for kind, _, argument in (step.partition(" ") for step in steps):
        if kind == "average":
            before, pool, grid, layers = tuple(layers), "average", int(argument), []
            width *= grid**2
        elif kind in ACTIVATIONS:
            layers += ACTIVATIONS[kind]
        else:
            argument, _, own_epsilon = argument.partition(" ")
            inner = {name: array for name, array in rest.items() if name.startswith(f"{argument}.")}
            rest = {name: array for name, array in rest.items() if name not in inner}
            weight, bias = (arrays.get(f"{argument}.{name}") for name in ("weight", "bias"))
            if weight is None and inner and kind == "linear":
                below = {name: each for name, each in modules.items() if name.startswith(f"{argument}.")}
                layers += read_chain(inner, below, activation)
                width = outputs = len([each for each in layers if isinstance(each, Linear)][-1].weight)
                continue
            if weight is None:
                raise CheckpointError(f"The file has no {argument}.weight: {UNKNOWN_HEAD}.")
            if bias is None:
                bias = np.zeros(len(weight), np.float32)
            # a convolution of one pixel is a linear layer too
            fits = (
                weight.shape == (width,) if kind == "norm" else weight.shape[1:] in ((width,), (width, 1, 1))
            )
            if not fits or not weight.size or bias.shape != weight.shape[:1]:
                raise CheckpointError(
                    f"{argument}.weight is {weight.shape} and {argument}.bias {bias.shape}, but the layers "
                    f"before give {width} numbers: {UNKNOWN_HEAD}."
                )
            if kind == "norm":
                epsilon = epsilon_of(modules.get(argument), float(own_epsilon or OWN_EPSILON))
                layers.append(LayerNorm(_float32(weight), _float32(bias), epsilon))
            else:
                layers.append(_linear({"weight": weight.reshape(-1, width), "bias": bias}, relu=False))
            width = outputs = len(weight)
    if rest:
        raise CheckpointError(
            f"The file has {next(iter(rest))} beside the head of its library: {UNKNOWN_HEAD}."
        )
    check_widths(layers)
    return Head(tuple(layers), pool, outputs, 0, grid, before)


def _modules(arrays: Arrays) -> dict[int, dict[str, Array]]:
    """The entries of the head by module, in order: {2: {"weight": ..., "bias": ...}, 4: ...}."""
    modules: dict[int, dict[str, Array]] = {}
    for name, array in arrays.items():
        if match := re.fullmatch(
            r"1\.(\d+)\.(weight|bias|running_mean|running_var|num_batches_tracked)", name
        ):
            modules.setdefault(int(match[1]), {})[match[2]] = array
        elif name.startswith("1."):
            raise CheckpointError(f"The head holds {name}, which is not understood: {UNKNOWN_HEAD}.")
    for index, module in modules.items():
        if module.keys() - {COUNTER} not in MODULES:
            raise CheckpointError(
                f"Layer {index} of the head holds {', '.join(module)} alone: {UNKNOWN_HEAD}."
            )
        outputs = module["weight"].shape[:1]
        others = [array.shape for name, array in module.items() if name not in ("weight", COUNTER)]
        flat = "running_mean" not in module or module["weight"].ndim == 1
        if not outputs or not flat or others != [outputs] * len(others):
            raise CheckpointError(
                f"Layer {index} of the head has {others} beside {outputs} weights: damaged."
            )
    return dict(sorted(modules.items()))


def _check_order(kinds: list[tuple[int, str]]) -> None:
    """Raise unless the indexes leave room for exactly the Dropout and ReLU layers that create_head puts
    between.
    """
    # linear layers side by side are never of create_head, which puts a BatchNorm between
    room = {("norm", "linear"): (1, 2), ("linear", "norm"): (2,)}
    gaps = [(before[1], after[1], after[0] - before[0]) for before, after in pairwise(kinds)]
    if len(kinds) > 1 and kinds[-1][1] == "norm":  # bn_final: no ReLU after the last Linear
        before, after, gap = gaps.pop()
        fits = (before, after, gap) == ("linear", "norm", 1)
    else:
        fits = bool(kinds)
    if not fits or not any(kind == "linear" for _, kind in kinds):
        raise CheckpointError(f"The file has no head that is understood: {UNKNOWN_HEAD}.")
    for before, after, gap in gaps:
        if gap not in room.get((before, after), ()):
            raise CheckpointError(f"The head has {before} and {after} layers {gap} apart: {UNKNOWN_HEAD}.")


def _linear(module: Arrays, relu: bool) -> Linear:
    weight = _float32(module["weight"])
    if weight.ndim != 2:
        raise CheckpointError(
            f"The head has a layer with weights of {weight.ndim} dimensions: {UNKNOWN_HEAD}."
        )
    bias = _float32(module["bias"]) if "bias" in module else np.zeros(len(weight), np.float32)
    return Linear(weight, bias, relu)


def _float32(array: Array) -> Float32:
    return np.require(array, np.float32, ["C", "ALIGNED"])

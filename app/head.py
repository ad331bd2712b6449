"""What follows the feature map, read off the state dict and computed in numpy: pool, BatchNorm, Linear, ReLU.

Knows the heads of fastai v1 (`create_head` of 1.0: biased Linear layers) and v2 (no bias after a BatchNorm),
with any number of classes and hidden layers, `concat_pool` or not, `bn_final` or not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.errors import CheckpointError

Float32 = npt.NDArray[np.float32]

EPSILON: Final = np.float32(1e-5)  # torch.nn.BatchNorm1d's default, which fastai leaves alone
MODULES: Final = ({"weight", "bias", "running_mean", "running_var"}, {"weight", "bias"}, {"weight"})
UNKNOWN_HEAD: Final = (
    "heads by fastai's create_head are served: pooling, then BatchNorm, Dropout, Linear and ReLU in turn. "
    'Use engine = "fastai" with your own head, or train with the usual vision_learner(dls, arch)'
)


@dataclass(frozen=True)
class BatchNorm:
    """y = x * scale + shift, which is (x - mean) / sqrt(var + eps) * weight + bias; both (features,)."""

    scale: Float32
    shift: Float32

    def __call__(self, x: Float32) -> Float32:
        return x * self.scale + self.shift

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * self.scale


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias, weight (outputs, inputs), bias (outputs,); then ReLU unless it is the last."""

    weight: Float32
    bias: Float32
    relu: bool

    def __call__(self, x: Float32) -> Float32:
        y: Float32 = x @ self.weight.T + self.bias
        return np.maximum(y, 0, out=y) if self.relu else y

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x` (N, inputs), from the one behind this layer, (N, outputs)."""
        passed: Float32 = behind * (self(x) > 0) if self.relu else behind
        return passed @ self.weight


@dataclass(frozen=True)
class Head:
    """A head ready to compute.

    `generation` is 1 or 2: the fastai that wrote it. `pool` is "concat", "average" or "none".
    """

    layers: tuple[BatchNorm | Linear, ...]
    pool: str
    outputs: int
    generation: int

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

    def pooled(self, features: Float32) -> Float32:
        """(N, C, h, w) feature maps, or (N, C) of a body that pools by itself -> (N, features) vectors."""
        if self.pool == "none":
            return features
        average: Float32 = features.mean(axis=(2, 3), dtype=np.float32)
        if self.pool == "average":
            return average
        # AdaptiveConcatPool2d: the maximum first, in both generations (fastai 1.0 layers.py:174, 2.8
        # layers.py:91)
        maximum: Float32 = features.max(axis=(2, 3))
        return np.concatenate([maximum, average], axis=1)


def softmax(logits: Float32) -> Float32:
    """(N, classes) logits -> (N, classes) probabilities, each row with sum 1."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def sigmoid(logits: Float32) -> Float32:
    """(N, classes) logits -> (N, classes) probabilities, each by itself."""
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def read_head(arrays: Mapping[str, npt.NDArray[Any]], channels: int) -> Head:
    """The head in the entries `1.<index>.<name>` of a fastai state dict, for a body of `channels` channels.

    Raises CheckpointError where its entries are not those of fastai's `create_head`.
    """
    modules = _modules(arrays)
    kinds = [(index, "norm" if "running_mean" in module else "linear") for index, module in modules.items()]
    _check_order(kinds)
    last_linear = max(index for index, kind in kinds if kind == "linear")
    layers = tuple(
        _batch_norm(modules[index]) if kind == "norm" else _linear(modules[index], relu=index != last_linear)
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
    _check_widths(layers)
    # v1 gives every Linear a bias, v2 none to the one behind a BatchNorm (1.0.50 layers.py:44, 2.8
    # layers.py:178)
    behind_norm = (last_linear, "linear") in [
        after for before, after in pairwise(kinds) if before[1] == "norm"
    ]
    generation = 1 if behind_norm and "bias" in modules[last_linear] else 2
    outputs = modules[last_linear]["weight"].shape[0]
    return Head(layers, pools[inputs], outputs, generation)


def _modules(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, dict[str, npt.NDArray[Any]]]:
    """The entries of the head by module, in order: {2: {"weight": ..., "bias": ...}, 4: ...}."""
    modules: dict[int, dict[str, npt.NDArray[Any]]] = {}
    for name, array in arrays.items():
        if match := re.fullmatch(
            r"1\.(\d+)\.(weight|bias|running_mean|running_var|num_batches_tracked)", name
        ):
            modules.setdefault(int(match[1]), {})[match[2]] = array
        elif name.startswith("1."):
            raise CheckpointError(f"The head holds {name}, which is not understood: {UNKNOWN_HEAD}.")
    for index, module in modules.items():
        if module.keys() - {"num_batches_tracked"} not in MODULES:
            raise CheckpointError(
                f"Layer {index} of the head holds {', '.join(module)} alone: {UNKNOWN_HEAD}."
            )
        outputs = module["weight"].shape[:1]
        others = [
            array.shape for name, array in module.items() if name not in ("weight", "num_batches_tracked")
        ]
        if not outputs or others != [outputs] * len(others):
            raise CheckpointError(
                f"Layer {index} of the head has {others} beside {outputs} weights: damaged."
            )
    return dict(sorted(modules.items()))


def _check_order(kinds: list[tuple[int, str]]) -> None:
    """Raise unless the indexes leave room for exactly the Dropout and ReLU layers that create_head puts
    between.
    """
    room = {("norm", "linear"): (1, 2), ("linear", "norm"): (2,), ("linear", "linear"): (2, 3)}
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


def _check_widths(layers: tuple[BatchNorm | Linear, ...]) -> None:
    """Raise unless every layer takes as many numbers as the one before it gives."""
    width = None
    for layer in layers:
        takes, gives = layer.weight.shape[::-1] if isinstance(layer, Linear) else (len(layer.scale),) * 2
        if width not in (None, takes):
            raise CheckpointError(
                f"In the head a layer for {takes} numbers follows one that gives {width}: damaged."
            )
        width = gives


def _batch_norm(module: Mapping[str, npt.NDArray[Any]]) -> BatchNorm:
    mean, var, weight, bias = (_float32(module[n]) for n in ("running_mean", "running_var", "weight", "bias"))
    scale = weight / np.sqrt(var + EPSILON)
    return BatchNorm(scale, bias - mean * scale)


def _linear(module: Mapping[str, npt.NDArray[Any]], relu: bool) -> Linear:
    weight = _float32(module["weight"])
    if weight.ndim != 2:
        raise CheckpointError(
            f"The head has a layer with weights of {weight.ndim} dimensions: {UNKNOWN_HEAD}."
        )
    bias = _float32(module["bias"]) if "bias" in module else np.zeros(len(weight), np.float32)
    return Linear(weight, bias, relu)


def _float32(array: npt.NDArray[Any]) -> Float32:
    return np.array(array, np.float32)  # a copy: small, and nothing of it then hangs on the file

"""What follows the feature map, read off the state dict and computed in numpy: pool, BatchNorm, Linear, ReLU.

Knows the heads of fastai v1 (`create_head` of 1.0: biased Linear layers) and v2 (no bias after a BatchNorm),
with any number of classes and hidden layers, `concat_pool` or not, `bn_final` or not; and those that
torchvision and timm put behind their own bodies, as the steps that a graph's description lists.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from msgspec import Struct

from app.engines.layers import BatchNorm, HardSwish, Layer, LayerNorm, Linear, ReLU
from app.errors import CheckpointError
from app.graphs.graph import EPSILON, WHOLE
from app.types import Array, Arrays, Float32

MODULES: Final = ({"weight", "bias", "running_mean", "running_var"}, {"weight", "bias"}, {"weight"})
UNKNOWN_HEAD: Final = (
    "heads by fastai's create_head are served: pooling, then BatchNorm, Dropout, Linear and ReLU in turn. "
    'Use engine = "fastai" with your own head, or train with the usual vision_learner(dls, arch)'
)


class Head(Struct, frozen=True):
    """A head ready to compute.

    `generation` is 1 or 2: the fastai that wrote it; 0 for a head of torchvision or timm. `pool` is "concat",
    "average" or "none"; an average is taken over a `grid` of so many windows a side. `before` are layers that
    work on each position of the feature map before it is pooled.
    """

    layers: tuple[Layer, ...]
    pool: str
    outputs: int
    generation: int
    grid: int = 1
    before: tuple[Layer, ...] = ()

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
        """(N, C, h, w) feature maps -> (N, C', h, w): what is pooled, and mostly the same."""
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


def read_head(arrays: Arrays, channels: int, own: Sequence[str] = ()) -> Head:
    """The head in the entries `1.<index>.<name>` of a fastai state dict, for a body of `channels` channels;
    without such entries the one that the body's library has, in the steps `own`.

    Raises CheckpointError where its entries are not those of fastai's `create_head`, or of those steps.
    """
    if tuple(own) == WHOLE:
        return Head((), "none", channels, 0)
    if own and not any(name.startswith("1.") for name in arrays):
        return _own_head(arrays, channels, own)
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


def _own_head(arrays: Arrays, channels: int, steps: Sequence[str]) -> Head:
    """The head of a library's own model: its steps are "relu", "hardswish", "average <grid>", and "linear" or
    "norm" with the name of a module.
    """
    width = channels
    layers: list[Layer] = []
    before: tuple[Layer, ...] = ()
    pool, grid, outputs = "none", 1, 0
    for kind, _, argument in (step.partition(" ") for step in steps):
        if kind == "average":
            before, pool, grid, layers = tuple(layers), "average", int(argument), []
            width *= grid**2
        elif kind in ("relu", "hardswish"):
            layers.append(ReLU() if kind == "relu" else HardSwish())
        else:
            weight, bias = (arrays.get(f"{argument}.{name}") for name in ("weight", "bias"))
            if weight is None or bias is None:
                raise CheckpointError(
                    f"The file has no {argument}.weight and {argument}.bias: {UNKNOWN_HEAD}."
                )
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
                layers.append(LayerNorm(_float32(weight), _float32(bias)))
            else:
                layers.append(_linear({"weight": weight.reshape(-1, width), "bias": bias}, relu=False))
            width = outputs = len(weight)
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
        if module.keys() - {"num_batches_tracked"} not in MODULES:
            raise CheckpointError(
                f"Layer {index} of the head holds {', '.join(module)} alone: {UNKNOWN_HEAD}."
            )
        outputs = module["weight"].shape[:1]
        others = [
            array.shape for name, array in module.items() if name not in ("weight", "num_batches_tracked")
        ]
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


def _batch_norm(module: Arrays) -> BatchNorm:
    mean, var, weight, bias = (_float32(module[n]) for n in ("running_mean", "running_var", "weight", "bias"))
    scale = weight / np.sqrt(var + EPSILON)
    return BatchNorm(scale, bias - mean * scale)


def _linear(module: Arrays, relu: bool) -> Linear:
    weight = _float32(module["weight"])
    if weight.ndim != 2:
        raise CheckpointError(
            f"The head has a layer with weights of {weight.ndim} dimensions: {UNKNOWN_HEAD}."
        )
    bias = _float32(module["bias"]) if "bias" in module else np.zeros(len(weight), np.float32)
    return Linear(weight, bias, relu)


def _float32(array: Array) -> Float32:
    return np.array(array, np.float32)  # a copy: small, and nothing of it then hangs on the file

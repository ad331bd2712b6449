"""The layers that a head is made of, in numpy: each computes (N, features) -> (N, features'), and its
gradient.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from app.graphs.graph import EPSILON
from app.types import Float32

SLOPE: Final = np.float32(0.01)
ERF: Final = np.vectorize(math.erf, otypes=[np.float64])


class BatchNorm(Struct, frozen=True):
    """y = x * scale + shift, which is (x - mean) / sqrt(var + eps) * weight + bias; both (features,)."""

    scale: Float32
    shift: Float32

    @classmethod
    def of(cls, module: Mapping[str, Float32], epsilon: float = float(EPSILON)) -> "BatchNorm":
        """Return the layer of a module's float32 weight, bias, running_mean and running_var."""
        scale: Float32 = module["weight"] / np.sqrt(module["running_var"] + np.float32(epsilon))
        return cls(scale, module["bias"] - module["running_mean"] * scale)

    def __call__(self, x: Float32) -> Float32:
        return x * self.scale + self.shift

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * self.scale


class Linear(Struct, frozen=True):
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


class LayerNorm(Struct, frozen=True):
    """(x - mean) / sqrt(var + eps) * weight + bias over the features of each row; both (features,)."""

    weight: Float32
    bias: Float32
    epsilon: float = float(EPSILON)  # torch.nn.LayerNorm's default too

    def __call__(self, x: Float32) -> Float32:
        return self._normal(x) * self.weight + self.bias

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x` (N, features), from the one behind this layer (arXiv 1607.06450)."""
        normal, passed = self._normal(x), behind * self.weight
        along = normal * (passed * normal).mean(axis=-1, keepdims=True)
        return (passed - passed.mean(axis=-1, keepdims=True) - along) / self._deviation(x)  # type: ignore[no-any-return]

    def _normal(self, x: Float32) -> Float32:
        return (x - x.mean(axis=-1, keepdims=True)) / self._deviation(x)  # type: ignore[no-any-return]

    def _deviation(self, x: Float32) -> Float32:
        return np.sqrt(x.var(axis=-1, keepdims=True) + np.float32(self.epsilon))  # type: ignore[no-any-return]


class HardSwish(Struct, frozen=True):
    """x * relu6(x + 3) / 6 (arXiv 1905.02244)."""

    def __call__(self, x: Float32) -> Float32:
        return x * np.clip(x + 3, 0, 6) / np.float32(6)

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * np.select([x < -3, x > 3], [0, 1], (2 * x + 3) / 6).astype(np.float32)


class ReLU(Struct, frozen=True):
    """max(x, 0), where it does not follow a Linear."""

    def __call__(self, x: Float32) -> Float32:
        return np.maximum(x, 0)

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * (x > 0)


class LeakyReLU(Struct, frozen=True):
    """x where it is positive, else x / 100: torch's default slope."""

    def __call__(self, x: Float32) -> Float32:
        return np.where(x > 0, x, x * SLOPE)

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * np.where(x > 0, np.float32(1), SLOPE)


class GELU(Struct, frozen=True):
    """x times the share of a normal distribution below x (arXiv 1606.08415), by erf as in torch."""

    def __call__(self, x: Float32) -> Float32:
        return x * self._below(x)

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        density = (np.exp(-x * x / 2) / math.sqrt(2 * math.pi)).astype(np.float32)
        return behind * (self._below(x) + x * density)

    @staticmethod
    def _below(x: Float32) -> Float32:
        return ((1 + ERF(x / math.sqrt(2))) / 2).astype(np.float32)  # type: ignore[no-any-return]


class SiLU(Struct, frozen=True):
    """x * sigmoid(x) (arXiv 1702.03118)."""

    def __call__(self, x: Float32) -> Float32:
        return x / (1 + np.exp(-x))  # type: ignore[no-any-return]

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        share: Float32 = (1 / (1 + np.exp(-x))).astype(np.float32)
        return behind * share * (1 + x * (1 - share))


class Tanh(Struct, frozen=True):
    """tanh(x)."""

    def __call__(self, x: Float32) -> Float32:
        return np.tanh(x)

    def gradient(self, x: Float32, behind: Float32) -> Float32:
        """The gradient by `x`, from the one behind this layer; both (N, features)."""
        return behind * (1 - np.tanh(x) ** 2)  # type: ignore[no-any-return]


Layer = BatchNorm | Linear | LayerNorm | HardSwish | ReLU | LeakyReLU | GELU | SiLU | Tanh

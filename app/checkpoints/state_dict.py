"""The weights in a container as arrays: views of the mapped file, by the names of torchvision or timm.

Knows nothing of exports, classes and architectures.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from app.checkpoints.containers import Container, Fetch
from app.checkpoints.dialects import Translated, translate
from app.checkpoints.records import BFLOAT16, Tensor
from app.checkpoints.weights import find_weights, unwrapped
from app.errors import CheckpointError
from app.types import Array

MAX_SHARING: Final = 4  # how often over the bytes of a file may be shared by tensors; tied weights share once
MAX_TENSORS: Final = 10_000  # a densenet201 has 1,200


def read_state(container: Container, of_export: dict[str, Tensor] | None) -> Translated:
    """Return the arrays of a state dict, or those of an export, whose names stay as they are.

    Raises CheckpointError, and the errors of numpy where the file is damaged.
    """
    size = len(container.data)
    if of_export is not None:
        arrays = dict(_arrays(of_export, container.fetch, size))
        return Translated(arrays, dict(zip(arrays, arrays, strict=True)))
    tensors = find_weights(container.tree, container.budget)
    names = unwrapped(list(tensors))
    tensors = {name: tensors[own] for name, own in names.items()}
    return translate(dict(_arrays(tensors, container.fetch, size)), names)


def _arrays(tensors: dict[str, Tensor], fetch: Fetch, size: int) -> Iterator[tuple[str, Array]]:
    """Read the arrays by name; a file of `size` bytes may share storages, but not claim many times that."""
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"The file holds {len(tensors):,} tensors, more than any network served here.")
    total = 0
    for name, tensor in tensors.items():
        array = read_array(name, tensor, fetch)
        total += array.nbytes
        if total > MAX_SHARING * size:
            raise CheckpointError(
                f"The tensors of the file overlap: they pretend to over {total:,} bytes of {size:,}."
            )
        yield name, array


def read_array(name: str, tensor: Tensor, fetch: Fetch) -> Array:
    """Read the array of a tensor; bfloat16 as float32, of which it is the upper half of the bits."""
    values = _strided(name, tensor, fetch(tensor.storage))
    if values.dtype != BFLOAT16:
        return values
    return (values["bfloat16"].astype(np.uint32) << 16).view(np.float32)


def _strided(name: str, tensor: Tensor, values: Array) -> Array:
    """Return the view of a storage (numbers in a row) with checked offset, sizes and strides, in elements."""
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True)
    )
    count = int(np.prod(tensor.size, dtype=object)) if tensor.size else 1
    if count == 0:
        return np.empty(tensor.size, values.dtype)
    if min(tensor.offset, *tensor.size, *tensor.stride, 0) < 0 or last >= len(values) or count > len(values):
        raise CheckpointError(
            f"The tensor {name} reaches beyond its storage of {len(values)} numbers: damaged file."
        )
    strides = [stride * values.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, strides, writeable=False)

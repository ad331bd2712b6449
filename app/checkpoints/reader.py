"""Read a checkpoint safely: its named arrays, and the facts in an exported learner.

Nothing of torch is needed, and no pickle is run. Does not know architectures or settings.
"""

import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from app.checkpoints.containers import Fetch, open_container
from app.checkpoints.dialects import Translated, translate
from app.checkpoints.foreign import EXPECTED, listed
from app.checkpoints.labels import Labels, find_labels
from app.checkpoints.learner_export import Export, read_export
from app.checkpoints.onnx_data import data_files
from app.checkpoints.records import BFLOAT16, Call, Tensor
from app.checkpoints.weights import find_weights, unwrapped
from app.errors import CheckpointError, plain
from app.types import Array

MAX_SHARING: Final = 4  # how often over the bytes of a file may be shared by tensors; tied weights share once
MAX_TENSORS: Final = 10_000  # a densenet201 has 1,200


class Checkpoint(Struct, frozen=True):
    """The content of a file of weights.

    `container` is "zip", "legacy", "pickle", "safetensors" or "onnx"; the arrays of an ONNX file stay in it,
    and `arrays` is empty. Else `arrays` maps state-dict names to read-only arrays, in the file's order. They
    are views of the mapped file, of its own dtypes, except bfloat16, which is widened to float32; in a legacy
    file they may be unaligned. `export` has the other facts of a learner or model that was saved whole,
    `labels` the class names beside a state dict. `names` maps the names of the arrays to those in the file,
    which may have the prefixes of wrappers. `library` is one whose names were translated, `family` the start
    of the names of architectures that it leaves. `unexpected` are the names in the pickle that loading it
    would look up, and that no network, transform or data block needs. `beside` are the settings that the
    files beside it decide; `data_files` the files of weights of an ONNX file, by the names that it has.
    """

    path: Path
    container: str
    arrays: dict[str, Array]
    file: mmap.mmap
    export: Export | None = None
    names: Mapping[str, str] = {}
    labels: Labels = ()
    library: str = ""
    family: str = ""
    unexpected: tuple[str, ...] = ()
    beside: Mapping[str, Any] = {}
    data_files: Mapping[str, Path] = {}

    @property
    def known(self) -> Mapping[str, Any]:
        """Return the settings that the file itself decides, by name."""
        known = self.export.known if self.export else {}
        own = {"classes": self.labels} if self.labels else {}
        return {**self.beside, **own, **known}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings for the owner of the file about the code that it names."""
        if not self.unexpected:
            return ()
        return (
            f"the file names code ({listed(self.unexpected)}); nothing of it was run here, but do not load "
            "the file with torch.load or learn.load unless you trust its author",
        )

    @property
    def module(self) -> Call | None:
        """Return the module tree, where the file has it."""
        return self.export.module if self.export else None

    def release(self) -> None:
        """Give the memory of the file back to the system, after its last use.

        The arrays stay valid: a later access reads the file again.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.file.madvise(mmap.MADV_DONTNEED)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a state dict, of a file of `Learner.save`, or of a learner or model saved whole.

    Raises CheckpointError for any other file and UnsafeCheckpoint for one that names other code.
    Memory: the pickle, and nothing of the tensors (they are mapped).
    """
    try:
        container = open_container(path)
        if container.kind == "onnx":
            named = data_files(memoryview(container.data), container.budget)
            return Checkpoint(path, "onnx", {}, container.data, data_files=dict.fromkeys(named, path))
        export = read_export(container.tree, lambda tensor: _array("", tensor, container.fetch))
        tensors = export.tensors() if export else find_weights(container.tree, container.budget)
        names = dict(zip(tensors, tensors, strict=True)) if export else unwrapped(list(tensors))
        tensors = {name: tensors[own] for name, own in names.items()}
        arrays = dict(_arrays(tensors, container.fetch, len(container.data)))
        translated = Translated(arrays, names) if export else translate(arrays, names)
        return Checkpoint(
            path,
            container.kind,
            translated.arrays,
            container.data,
            export,
            translated.names,
            find_labels(container.tree, container.budget),
            translated.library,
            translated.family,
            tuple(sorted(map(str, container.unexpected))),
        )
    except CheckpointError:
        raise
    # The errors of pickletools, zipfile, json, struct and numpy on a damaged file; each is a fact about it.
    except (
        ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError, MemoryError,
        NotImplementedError, OSError, RecursionError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"The file is damaged or not a checkpoint ({type(error).__name__}: {plain(error)}); "
            f"{EXPECTED}. Download it again, or save it again."
        ) from error


def _arrays(tensors: dict[str, Tensor], fetch: Fetch, size: int) -> Iterator[tuple[str, Array]]:
    """Read the arrays by name; a file of `size` bytes may share storages, but not claim many times that."""
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"The file holds {len(tensors):,} tensors, more than any network served here.")
    total = 0
    for name, tensor in tensors.items():
        array = _array(name, tensor, fetch)
        total += array.nbytes
        if total > MAX_SHARING * size:
            raise CheckpointError(
                f"The tensors of the file overlap: they pretend to over {total:,} bytes of {size:,}."
            )
        yield name, array


def _array(name: str, tensor: Tensor, fetch: Fetch) -> Array:
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

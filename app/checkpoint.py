"""Open a checkpoint safely and say what is inside: named arrays, without torch and without running a pickle.

Knows the two containers `torch.save` has written: the zip of torch >= 1.6, and the legacy file of four
pickles followed by the raw storages. Does not know architectures, classes or settings.
"""

import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.errors import CheckpointError
from app.unpickler import BFLOAT16, SAVE_AGAIN, Call, Storage, Tensor, Unpickler

Array = npt.NDArray[Any]

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_PROTOCOL: Final = 1001
PARALLEL: Final = "module."  # what DataParallel puts before every name
MAX_SHARING: Final = 4  # how often over the bytes of a file may be shared by tensors; tied weights share once

# What people upload instead of a checkpoint, told by the first bytes (lower case).
IMPOSTORS: Final = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`, or link to the file itself"),
    (b"<!doctype", "a web page", "use the link that downloads the file itself, not the page that shows it"),
    (b"<html", "a web page", "use the link that downloads the file itself, not the page that shows it"),
    (b"<?xml", "an XML answer", "the host refused the download: check the link in a private browser window"),
    (b"<", "a web page", "use the link that downloads the file itself, not the page that shows it"),
    (b"{", "a JSON text", "the host refused the download: check the link in a private browser window"),
    (b"\x89hdf", "an HDF5 file (Keras?)", "fastai's learn.save('stage-2') writes the file to deploy"),
    (b"\x93numpy", "a numpy array", "fastai's learn.save('stage-2') writes the file to deploy"),
)
EXPECTED: Final = "a checkpoint such as learn.save('stage-2') writes was expected"


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    `container` is "zip" or "legacy". `arrays` maps state-dict names to read-only arrays, in the file's order.
    They are views of the mapped file, of its own dtypes, except bfloat16, which is widened to float32; in a
    legacy file they may be unaligned.
    """

    container: str
    arrays: dict[str, Array]
    file: mmap.mmap

    def release(self) -> None:
        """Give the memory that the file was read into back to the system, once all of it has been used.

        The arrays stay what they are: what is looked at again is read from the file again.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.file.madvise(mmap.MADV_DONTNEED)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a `torch.save`d state dict, or of what `Learner.save` makes of one.

    Raises CheckpointError for whatever is not such a file and UnsafeCheckpoint for one that names other code.
    Memory: the pickle, and nothing of the tensors (they are mapped).
    """
    check_signature(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        container, tree, storages = (
            ("zip", *_read_zip(path, data)) if data[:2] == b"PK" else _read_legacy(data)
        )
        return Checkpoint(container, dict(_arrays(_state_dict(tree), storages, len(data))), data)
    except CheckpointError:
        raise
    # All that a damaged file can raise in pickletools, zipfile, struct and numpy; each is a fact about the
    # file.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError, MemoryError,
            NotImplementedError, OSError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(
            f"The file is damaged or no checkpoint ({type(error).__name__}: {str(error)[:120]}); "
            f"{EXPECTED}. Download it again, or save it again."
        ) from error


def check_signature(path: Path) -> None:
    """Raise CheckpointError if the first bytes of the file say that it is something else, by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    found, remedy = _impostor(start)
    if found:
        raise CheckpointError(f"The file is {found}, but {EXPECTED}: {remedy}.")


def _impostor(start: bytes) -> tuple[str, str]:
    """What a file that begins so is, and what to do about it; empty where it may be a checkpoint."""
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "", ""
    if not start.strip(b"\0"):
        return ("full of zeros" if start else "empty"), "the copy was cut short: upload it again"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, found, remedy in IMPOSTORS:
        if text.startswith(signature):
            return found, remedy
    shown = start[:16].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"no file that torch writes (it begins with '{shown}')", SAVE_AGAIN


# --- the containers -----------------------------------------------------------------------------------------


Fetch = Callable[[Storage], Array]  # the (count,) array of a storage


def _read_zip(path: Path, data: mmap.mmap) -> tuple[Any, Fetch]:
    """The pickled object of a torch >= 1.6 zip, and how to fetch its storages."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"The file is a zip file without the data.pkl that torch writes; {EXPECTED}.")
    root = pickles[0].removesuffix("data.pkl")

    def content(name: str) -> memoryview:
        info = entries[root + name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                "The file was compressed by a zip program; deploy the file that torch wrote."
            )
        name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
        start = info.header_offset + 30 + name_length + extra_length  # APPNOTE.TXT 4.3.7, local file header
        return memoryview(data)[start : start + info.file_size]

    if root + "byteorder" in entries and bytes(content("byteorder")) != b"little":
        raise CheckpointError("The file was written on a big-endian machine, which is not read.")
    if root + "constants.pkl" in entries:
        raise CheckpointError(f"The file is a TorchScript archive, but {EXPECTED}: {SAVE_AGAIN}.")

    def fetch(storage: Storage) -> Array:
        return _numbers(content(f"data/{storage.key}"), storage, 0)

    return Unpickler(bytes(content("data.pkl"))).load(), fetch


def _read_legacy(data: mmap.mmap) -> tuple[str, Any, Fetch]:
    """The same of a legacy file: magic, protocol, system, object and storage keys are pickles; raw storages
    follow.
    """
    machine = Unpickler(data)
    if machine.load() != LEGACY_MAGIC or machine.load() != LEGACY_PROTOCOL:
        raise CheckpointError(f"The file is a plain pickle, but {EXPECTED}: {SAVE_AGAIN}.")
    if not machine.load().get("little_endian", True):
        raise CheckpointError("The file was written on a big-endian machine, which is not read.")
    tree = machine.load()
    starts: dict[str, int] = {}
    keys = machine.load()
    position = data.tell()
    for key in keys:
        if not isinstance(key, str):
            raise ValueError("a storage key is no string")
        (count,) = struct.unpack_from("<q", data, position)
        starts[key] = position + 8
        position += 8 + count * machine.storages[key].dtype.itemsize
        if count < 0 or position > len(data):
            raise CheckpointError(
                f"The file is cut short: {len(data):,} bytes, but it needs {position:,} or more."
            )

    def fetch(storage: Storage) -> Array:
        return _numbers(data, storage, starts[storage.key])

    return "legacy", tree, fetch


def _numbers(data: mmap.mmap | memoryview, storage: Storage, start: int) -> Array:
    """The (count,) array of a storage that begins at byte `start`; numpy refuses to map an empty one."""
    return (
        np.frombuffer(data, storage.dtype, storage.count, start)
        if storage.count
        else np.empty(0, storage.dtype)
    )


# --- from the pickled object to arrays ----------------------------------------------------------------------


def _state_dict(tree: Any) -> dict[str, Any]:
    """The names and tensors: the object itself, or its `model` where it has the optimizer too."""
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        tree = tree["model"]
    if not isinstance(tree, dict):
        raise CheckpointError(f"The file holds {_describe(tree)}, but {EXPECTED}: {SAVE_AGAIN}.")
    tensors = {
        name: value for name, value in tree.items() if isinstance(value, Tensor) and isinstance(name, str)
    }
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): value for name, value in tensors.items()}
    if not tensors:
        raise CheckpointError(
            f"The file holds no tensors (its entries: {str(list(tree)[:5])[:200]}), but {EXPECTED}."
        )
    return tensors


def _describe(value: Any) -> str:
    return f"a call of {value.callee}" if isinstance(value, Call) else f"a {type(value).__name__.lower()}"


def _arrays(tensors: dict[str, Tensor], fetch: Fetch, size: int) -> Iterator[tuple[str, Array]]:
    """The arrays by name; a file of `size` bytes may share storages, but not pretend to hold many times its
    size.
    """
    total = 0
    for name, tensor in tensors.items():
        array = _strided(name, tensor, fetch(tensor.storage))
        total += array.nbytes
        if total > MAX_SHARING * size:
            raise CheckpointError(
                f"The tensors of the file overlap: they pretend to over {total:,} bytes of {size:,}."
            )
        yield name, _widen(array)


def _widen(values: Array) -> Array:
    """bfloat16 as float32: the upper half of its bits."""
    if values.dtype != BFLOAT16:
        return values
    return (values["bfloat16"].astype(np.uint32) << 16).view(np.float32)


def _strided(name: str, tensor: Tensor, values: Array) -> Array:
    """The view of a storage (numbers in a row) that offset, sizes and strides (in elements) describe,
    checked.
    """
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

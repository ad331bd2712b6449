"""The containers of checkpoints: torch's (the zip of torch >= 1.6, the legacy file of four pickles and raw
storages, a plain pickle with torch files inside) and safetensors.

Reads the one object in a file and the numbers of its storages. Does not interpret the object.
"""

import io
import json
import mmap
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from app.checkpoints.budget import Budget
from app.checkpoints.exported import CONFIG, WEIGHTS, read_config
from app.checkpoints.foreign import check_start, other_zip
from app.checkpoints.onnx_data import data_files
from app.checkpoints.records import BFLOAT16, Global, Nested, Storage, Tensor
from app.checkpoints.unpickler import MAX_DIMENSIONS, Unpickler
from app.errors import CheckpointError, plain
from app.types import Array

Fetch = Callable[[Storage | Nested], Array]  # the (count,) array of a storage

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C  # torch/serialization.py MAGIC_NUMBER
LEGACY_PROTOCOL: Final = 1001
MAX_HEADER: Final = 2_000_000  # bytes of a safetensors header, for 10,000 tensors
MAX_DIRECTORY: Final = 2_000_000  # bytes of the list of entries in a zip, for 20,000 of them
MAX_NESTING: Final = 3  # torch files inside pickles inside torch files
SAFETENSORS_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip


class Container(Struct, frozen=True):
    """An open file: `kind` is "zip", "legacy", "pickle", "safetensors" or "onnx", `tree` the object in it
    (in ONNX the names of its files of weights), `fetch` gives the numbers of its storages. `unexpected` are
    the names in its pickles that no network, transform or data block needs; `budget` is the rest of it for
    the reader.
    """

    kind: str
    tree: Any
    fetch: Fetch
    unexpected: frozenset[Global]
    data: mmap.mmap  # the whole file
    budget: Budget


def open_container(path: Path) -> Container:
    """Open a file. The arrays that `fetch` gives are views of the mapped file.

    Raises CheckpointError where the first bytes are those of another format or the file is cut short, and
    the errors of pickletools, zipfile, struct and numpy where it is damaged.
    """
    start = check_signature(path)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    budget = Budget.of(len(data))
    if is_onnx(start):
        names = data_files(memoryview(data), budget)
        return Container("onnx", names, _no_storages, frozenset(), data, budget)
    if is_safetensors(start):
        return Container("safetensors", *_read_safetensors(data), frozenset(), data, budget)
    if start.startswith(b"PK"):
        kind, (machine, tree, fetch) = "zip", _read_zip(path, data, budget)
    else:
        machine = Unpickler(data, budget)
        kind, tree, fetch = _read_pickles(machine, data)
    _walk_nested(machine)
    return Container(kind, tree, _with_nested(fetch, budget), frozenset(machine.unexpected), data, budget)


def check_signature(path: Path) -> bytes:
    """Return the first bytes of a file. Raises CheckpointError, naming the format, if they are not a
    checkpoint's.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not is_checkpoint(start):
        check_start(start, path)
    return start


def is_checkpoint(start: bytes) -> bool:
    """Tell whether a file with this start may be a checkpoint."""
    is_pickle = start[:1] == b"\x80" and 2 <= int.from_bytes(start[1:2]) <= 5  # PROTO, as pickle writes it
    return is_pickle or is_safetensors(start) or is_onnx(start) or start.startswith(b"PK\x03\x04")


def is_onnx(start: bytes) -> bool:
    """Tell whether a file begins as ONNX does: field 1, the version of the format, then another field of
    ModelProto.
    """
    return (
        len(start) > 2
        and start[0] == 0x08
        and 3 <= start[1] <= 20
        and start[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42"
    )


def is_safetensors(start: bytes) -> bool:
    """Tell whether a file begins as safetensors does: the length of a JSON header, then the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


# --- one function a container: the object, and how to fetch its storages ------------------------------------


class _Directory(io.FileIO):
    """A file from which zipfile reads the list of entries, if that is not too long."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise CheckpointError(
                f"The zip file lists its entries in {size:,} bytes, more than any checkpoint: unpack it and "
                "deploy the file inside."
            )
        return super().read(size) or b""


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """List the entries of a zip. Raises CheckpointError where it is cut short, or has two of one name."""
    with path.open("rb") as file:
        file.seek(
            -min(path.stat().st_size, 66_000), io.SEEK_END
        )  # APPNOTE.TXT 4.3.16: 22 bytes and a comment
        if b"PK\x05\x06" not in file.read():
            raise CheckpointError.cut_short(
                path.stat().st_size, "a zip file ends with the list of its entries"
            )
    with _Directory(path) as directory, zipfile.ZipFile(directory) as archive:
        found = archive.infolist()
    entries = {info.filename: info for info in found}
    if len(entries) < len(found):  # torch would read the one, this reader the other
        raise CheckpointError("The zip file has two entries of one name, as torch never writes it.")
    return entries


def _read_zip(path: Path, data: mmap.mmap, budget: Budget) -> tuple[Unpickler, Any, Fetch]:
    """Read the zip of torch >= 1.6: data.pkl and one uncompressed entry a storage."""
    entries = _entries(path)
    indexes = [name for name in entries if re.fullmatch(rf"(.*/)?(data\.pkl|{re.escape(CONFIG)})", name)]
    if len(indexes) != 1:
        raise other_zip(entries)
    exported = indexes[0].endswith(CONFIG)
    root = indexes[0].removesuffix(CONFIG if exported else "data.pkl")

    def content(name: str) -> memoryview:
        info = entries[root + name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                "The file was compressed by a zip program; deploy the file that torch wrote."
            )
        name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
        start = info.header_offset + 30 + name_length + extra_length  # APPNOTE.TXT 4.3.7, local file header
        if start + info.file_size > len(data):
            raise CheckpointError.cut_short(
                len(data), f"{start + info.file_size:,} bytes or more were expected"
            )
        return memoryview(data)[start : start + info.file_size]

    order = bytes(content("byteorder")) if root + "byteorder" in entries else b"little"
    if order == b"big":
        raise CheckpointError("The file was written on a big-endian machine, which is not read.")
    if order != b"little":
        raise ValueError("the byte order is neither big nor little")

    def fetch(storage: Storage | Nested) -> Array:
        folder = WEIGHTS if exported else "data/"
        return _numbers(content(f"{folder}{_outside(storage).key}"), _outside(storage), 0)

    machine = Unpickler(io.BytesIO(b"" if exported else content("data.pkl")), budget)
    if exported:
        sizes = {name.removeprefix(root): info.file_size for name, info in entries.items()}
        return machine, read_config(bytes(content(CONFIG)), sizes), fetch
    return machine, machine.load(), fetch


def _read_pickles(machine: Unpickler, data: mmap.mmap | memoryview) -> tuple[str, Any, Fetch]:
    """Read a legacy file: magic, protocol, system, object and storage keys are pickles, raw storages follow.
    Any other first pickle is the object itself.
    """
    first = machine.load()
    if first != LEGACY_MAGIC:
        return "pickle", first, _no_storages
    if machine.load() != LEGACY_PROTOCOL:
        raise ValueError("an unknown protocol of torch")
    if not machine.load().get("little_endian", True):
        raise CheckpointError("The file was written on a big-endian machine, which is not read.")
    tree = machine.load()
    starts: dict[str, int] = {}
    keys = machine.load()
    position = machine.source.tell()
    for key in keys:
        if not isinstance(key, str):
            raise ValueError("a storage key is not a string")
        (count,) = struct.unpack_from("<q", data, position)
        starts[key] = position + 8
        position += 8 + count * machine.storages[key].dtype.itemsize
        if count < 0 or position > len(data):
            raise CheckpointError.cut_short(len(data), f"{position:,} bytes or more were expected")

    def fetch(storage: Storage | Nested) -> Array:
        return _numbers(data, _outside(storage), starts[_outside(storage).key])

    return "legacy", tree, fetch


def _read_safetensors(data: mmap.mmap) -> tuple[dict[str, Tensor], Fetch]:
    """Read safetensors (github.com/huggingface/safetensors): the header's length, the header, the numbers."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise CheckpointError.cut_short(len(data), f"its header alone has {length:,}")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tree, starts = {}, {}
    for name, entry in header.items():
        if len(entry["shape"]) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(entry['shape'])} dimensions")
        if (kind := str(entry["dtype"])) not in SAFETENSORS_TYPES:
            raise CheckpointError(
                f"The file holds numbers of the type {plain(kind, 20)}, which are not read: save them in "
                "float32."
            )
        dtype, (begin, end) = SAFETENSORS_TYPES[kind], entry["data_offsets"]
        size = tuple(int(side) for side in entry["shape"])
        stride = tuple(int(np.prod(size[axis + 1 :], dtype=object)) for axis in range(len(size)))
        tree[name] = Tensor(Storage(name, dtype, (end - begin) // dtype.itemsize), 0, size, stride)
        starts[name] = 8 + length + begin
        if begin < 0 or 8 + length + end > len(data):
            raise CheckpointError.cut_short(len(data), f"{8 + length + end:,} bytes or more were expected")

    def fetch(storage: Storage | Nested) -> Array:
        return _numbers(data, _outside(storage), starts[_outside(storage).key])

    return tree, fetch


def _walk_nested(machine: Unpickler, depth: int = 0) -> None:
    """Walk the torch files inside a pickle, of use or not, for the names that they hold."""
    if machine.nested and depth == MAX_NESTING:
        raise CheckpointError(f"The file has torch files in one another, over {MAX_NESTING} deep.")
    for data in machine.nested:
        inner = Unpickler(io.BytesIO(data), machine.budget, unexpected=machine.unexpected)
        _read_pickles(inner, memoryview(data))
        _walk_nested(inner, depth + 1)


def _with_nested(fetch: Fetch, budget: Budget) -> Fetch:
    """Storages that are torch files inside the pickle are read from there, each once."""
    known: dict[int, Array] = {}

    def fetch_either(storage: Storage | Nested) -> Array:
        if isinstance(storage, Storage):
            return fetch(storage)
        file = id(storage.data)  # which stays where it is: the tensor holds it
        if file not in known:
            _, inner, fetch_inner = _read_pickles(
                Unpickler(io.BytesIO(storage.data), budget), memoryview(storage.data)
            )
            known[file] = fetch_inner(inner)
        return known[file]

    return fetch_either


def _outside(storage: Storage | Nested) -> Storage:
    if not isinstance(storage, Storage):
        raise TypeError("a torch file inside a torch file inside a pickle")
    return storage


def _no_storages(storage: Storage | Nested) -> Array:
    raise ValueError("a storage outside of a plain pickle")


def _numbers(data: mmap.mmap | memoryview, storage: Storage, start: int) -> Array:
    """Map the (count,) array of a storage that begins at byte `start`; numpy refuses to map an empty one."""
    return (
        np.frombuffer(data, storage.dtype, storage.count, start)
        if storage.count
        else np.empty(0, storage.dtype)
    )

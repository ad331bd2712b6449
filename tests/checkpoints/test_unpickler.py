"""Pickles written by hand, opcode by opcode: what a file may say of its storages, and what is refused."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from app.checkpoints.reader import read_checkpoint
from app.errors import CheckpointError

NUMBERS = np.array([1, 2, 3, 4], "<f4")
NONE = b"N"


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """BININT."""
    return b"J" + struct.pack("<i", value)


def items(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def storage(kind: str = "storage", count: int = 4, *view: bytes) -> bytes:
    """The persistent id of the storage "0", as torch writes it."""
    return items(text(kind), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(count), *view) + b"Q"


def tensor(
    offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), of: bytes | None = None
) -> bytes:
    """A call of `_rebuild_tensor_v2`."""
    sides = (items(*map(number, sides)) for sides in (size, stride))
    arguments = items(of or storage(), number(offset), *sides, b"\x89", b"}")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def written(folder: Path, value: bytes, numbers: bytes = NUMBERS.tobytes(), **entries: bytes) -> Path:
    """A checkpoint of torch's zip with one value, "0.weight"."""
    path = folder / "stage-2.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + text("0.weight") + value + b"s.")
        archive.writestr("archive/data/0", numbers)
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tensor(), [1, 2, 3, 4]),
        (tensor(1, (3,)), [2, 3, 4]),
        (tensor(0, (2, 2), (2, 1)), [[1, 2], [3, 4]]),
        (tensor(0, (2, 2), (1, 2)), [[1, 3], [2, 4]]),
        (tensor(0, (2,), (0,)), [1, 1]),
        (tensor(3, (), ()), 4),
        (tensor(9, (0, 3), (3, 1)), np.empty((0, 3))),
        (tensor(of=storage("storage", 4, NONE)), [1, 2, 3, 4]),
    ],
    ids=["whole", "offset", "rows", "columns", "repeated", "scalar", "empty", "without a view"],
)
def test_a_tensor_is_the_part_of_its_storage_that_it_names(
    value: bytes, expected: object, tmp_path: Path
) -> None:
    array = read_checkpoint(written(tmp_path, value)).arrays["0.weight"]
    np.testing.assert_array_equal(array, np.array(expected, np.float32), strict=True)


BEYOND = "reaches beyond its storage of 4 numbers"
DEEP = (1,) * 65


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (tensor(0, (5,)), BEYOND),
        (tensor(1, (4,)), BEYOND),
        (tensor(0, (2,), (4,)), BEYOND),
        (tensor(0, (5,), (0,)), BEYOND),
        (tensor(-1), BEYOND),
        (tensor(3, (2,), (-1,)), BEYOND),
        (tensor(0, (-1,)), BEYOND),
        (tensor(0, (4,), (1, 1)), "damaged"),
        (tensor(0, DEEP, DEEP), "a tensor of 65 dimensions"),
        (tensor(of=storage("storage", -1)), "a persistent id is not a whole storage"),
        (tensor(of=storage("storage", 4, items(number(1)))), "a persistent id is not a whole storage"),
        (tensor(of=storage("weights")), "a persistent id is not a whole storage"),
        (tensor(of=storage("storage", 5)), "damaged"),
        (b"P0\n", "opcode PERSID has no place"),
        (b"\x82\x01", "opcode EXT1 has no place"),
        (b"(icollections\nOrderedDict\n", "opcode INST has no place"),
        (b"(ccollections\nOrderedDict\no", "opcode OBJ has no place"),
        (b"(\x85", "a mark where a value was expected"),
        (b"K\x01)R", "a int is called"),
        (b"ctorch._utils\n_rebuild_parameter\nK\x02R", "a tuple was expected"),
        (b"\x88K\x01\x93", "a str was expected"),
    ],
)
def test_a_pickle_that_no_torch_writes_is_refused(value: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(written(tmp_path, value))


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    assert read_checkpoint(written(tmp_path, tensor(), byteorder=b"little")).arrays
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(written(tmp_path, tensor(), byteorder=b"big"))

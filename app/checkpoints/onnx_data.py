"""The files of weights that an ONNX file names, read without the onnx package and without their numbers.

The numbers of fields are those of onnx.proto (onnx 1.23).
"""

import re
from collections.abc import Iterator
from typing import Final

from app.checkpoints.budget import Budget
from app.errors import CheckpointError

GRAPH, INITIALIZER, EXTERNAL_DATA, LOCATION = 7, 5, 13, 14  # of ModelProto, GraphProto, and TensorProto
IS_EXTERNAL: Final = 1  # TensorProto.DataLocation
MAX_FILES: Final = 100
FILE_NAME: Final = re.compile(r"(?!\.)[\w.+() -]{1,200}")
Value = int | memoryview


def data_files(model: memoryview, budget: Budget) -> tuple[str, ...]:
    """Return the names of the files beside a model that hold its weights; none if it has its own.

    Raises CheckpointError for names of files elsewhere, ValueError where the model is damaged.
    """
    names = dict[str, None]()
    for graph in _messages(model, GRAPH, budget):
        for tensor in _messages(graph, INITIALIZER, budget):
            fields = list(_fields(tensor, budget))
            if (LOCATION, IS_EXTERNAL) in fields:
                names.update(dict.fromkeys(_locations(fields, budget)))
    for name in names:
        if not FILE_NAME.fullmatch(name) or len(names) > MAX_FILES:
            raise CheckpointError(
                f"The ONNX file keeps weights in {name[:80]!r}, which is not a file beside it: export it "
                "again, in one file."
            )
    return tuple(names)


def _locations(fields: list[tuple[int, Value]], budget: Budget) -> Iterator[str]:
    for number, entry in fields:
        if number == EXTERNAL_DATA and isinstance(entry, memoryview):
            pair = {key: bytes(text) for key, text in _fields(entry, budget) if not isinstance(text, int)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode()


def _messages(data: memoryview, number: int, budget: Budget) -> Iterator[memoryview]:
    return (
        value for found, value in _fields(data, budget) if found == number and isinstance(value, memoryview)
    )


def _fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a message: whole numbers, or the bytes of texts, messages and others."""
    at = 0
    while at < len(data):
        budget.charge(0, 1)
        key, at = _varint(data, at)
        kind, size = key & 7, 0
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the type {kind}")
        if at + size > len(data):
            raise CheckpointError.cut_short(len(data), f"a part of it ends after {at + size:,} or more")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    number = 0
    for index in range(10):
        byte = data[at + index] if at + index < len(data) else 0
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, at + index + 1
    raise ValueError("a number of over 10 bytes")

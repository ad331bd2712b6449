"""Reads messages of protobuf field by field, as strangers' files need it: within a budget, without copies."""

from collections.abc import Iterator

from app.checkpoints.budget import Budget
from app.errors import CheckpointError

Value = int | memoryview


def messages(data: memoryview, number: int, budget: Budget) -> Iterator[memoryview]:
    """Yield the contents of every field with a number, which are messages, texts or bytes."""
    return (
        value for found, value in fields(data, budget) if found == number and isinstance(value, memoryview)
    )


def fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, Value]]:
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

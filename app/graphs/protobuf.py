"""ONNX models as bytes, read and written without the onnx package, which serving does not have.

The numbers of fields and types are those of onnx.proto (onnx 1.23).
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from app.checkpoints.budget import Budget
from app.checkpoints.protobuf import fields, messages
from app.types import Array, Arrays

FLOAT, INT, STRING, GRAPH, INTS = 1, 2, 3, 5, 7  # AttributeProto.AttributeType
ELEMENT_TYPES: Final = {  # TensorProto.DataType
    np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int64): 7, np.dtype(np.str_): 8,
    np.dtype(np.bool_): 9, np.dtype(np.float16): 10, np.dtype(np.float64): 11,
}  # fmt: skip
EXTERNAL: Final = 1  # TensorProto.DataLocation
BOUND: Final = "bound-from-memory"  # in place of the file that ONNX would read a weight from

Attribute = float | str | bytes | Sequence[int]  # bytes are a GraphProto


# --- writing -----------------------------------------------------------------------------------------------


def node(operator: str, inputs: Sequence[str], *outputs: str, **attributes: Attribute) -> bytes:
    """A NodeProto; whole numbers become attributes of type INT, others of type FLOAT."""
    parts = [*(text(1, name) for name in inputs), *(text(2, name) for name in outputs), text(4, operator)]
    parts += [message(5, text(1, name) + _attribute(value)) for name, value in attributes.items()]
    return b"".join(parts)


def _attribute(value: Attribute) -> bytes:
    match value:
        case int():
            return number(3, value) + number(20, INT)
        case float():
            return _key(2, 5) + struct.pack("<f", value) + number(20, FLOAT)
        case str():
            return text(4, value) + number(20, STRING)
        case bytes():
            return message(6, value) + number(20, GRAPH)
    return b"".join(number(8, each) for each in value) + number(20, INTS)


def extension(nodes: Sequence[bytes], weights: Arrays, outputs: Sequence[str]) -> bytes:
    """Bytes that add nodes, initializers and outputs to a serialized ModelProto when they follow it.

    The outputs are float32 of two dimensions. Protobuf merges messages that follow one another: it joins
    their lists. The weights hold no numbers; they are bound by their names.
    """
    parts = [message(1, node) for node in nodes]
    for name, array in weights.items():
        location = text(1, "location") + text(2, BOUND)
        tensor = [number(1, side) for side in array.shape]
        tensor += [number(2, ELEMENT_TYPES[array.dtype]), text(8, name)]
        tensor += [message(13, location), number(14, EXTERNAL)]
        parts.append(message(5, b"".join(tensor)))
    parts += [message(12, value_info(name, np.float32, ("", ""))) for name in outputs]
    return message(7, b"".join(parts))


def tensor(name: str, array: Array) -> bytes:
    """A TensorProto that holds its numbers, or its texts."""
    texts = array.dtype.kind == "U"
    kind = ELEMENT_TYPES[np.dtype(np.str_) if texts else array.dtype]
    parts = [*(number(1, side) for side in array.shape), number(2, kind), text(8, name)]
    if texts:
        return b"".join([*parts, *(text(6, each) for each in array.ravel().tolist())])
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return b"".join([*parts, message(9, little.tobytes())])


def value_info(name: str, dtype: type[np.generic], sides: Sequence[int | str]) -> bytes:
    """A ValueInfoProto; a side without a fixed length is a name, which may be empty."""
    shape = b""
    for side in sides:
        named = text(2, side) if isinstance(side, str) and side else b""
        shape += message(1, number(1, side) if isinstance(side, int) else named)
    kind = number(1, ELEMENT_TYPES[np.dtype(dtype)]) + message(2, shape)
    return text(1, name) + message(2, message(1, kind))


def metadata(entries: Mapping[str, str]) -> bytes:
    """The metadata of a ModelProto."""
    return b"".join(message(14, text(1, key) + text(2, value)) for key, value in entries.items())


def number(field: int, value: int) -> bytes:
    """A field with a whole number, which may be negative."""
    return _key(field, 0) + _varint(value % (1 << 64))


def message(field: int, content: bytes) -> bytes:
    """A field with a message or bytes."""
    return _key(field, 2) + _varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    """A field with a text."""
    return message(field, content.encode())


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


# --- reading -----------------------------------------------------------------------------------------------


def all_bytes(data: bytes, field: int) -> list[bytes]:
    """Return the contents of every field with a number, which are bytes."""
    return [bytes(content) for content in messages(memoryview(data), field, Budget.of(len(data)))]


def tensor_name(tensor: bytes) -> str:
    """Return the name of a TensorProto."""
    return all_bytes(tensor, 8)[0].decode()


def is_external(tensor: bytes) -> bool:
    """Tell whether the numbers of a TensorProto are elsewhere."""
    return (14, EXTERNAL) in fields(memoryview(tensor), Budget.of(len(tensor)))

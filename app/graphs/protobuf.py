"""ONNX nodes as bytes, for a graph that is continued without the onnx package, which serving does not have.

The numbers of fields and types are those of onnx.proto (onnx 1.23).
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from app.types import Arrays

FLOAT, INT = 1, 2  # AttributeProto.AttributeType
ELEMENT_TYPES: Final = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}  # TensorProto.DataType
EXTERNAL: Final = 1  # TensorProto.DataLocation
BOUND: Final = "bound-from-memory"  # in place of the file that ONNX would read a weight from


def node(operator: str, inputs: Sequence[str], output: str, **attributes: float) -> bytes:
    """A NodeProto; whole numbers become attributes of type INT, others of type FLOAT."""
    fields = [*(_text(1, name) for name in inputs), _text(2, output), _text(4, operator)]
    for name, value in attributes.items():
        if isinstance(value, int):
            number = _key(3, 0) + _varint(value) + _key(20, 0) + _varint(INT)
        else:
            number = _key(2, 5) + struct.pack("<f", value) + _key(20, 0) + _varint(FLOAT)
        fields.append(_bytes(5, _text(1, name) + number))
    return b"".join(fields)


def extension(nodes: Sequence[bytes], weights: Arrays, outputs: Sequence[str]) -> bytes:
    """Bytes that add nodes, initializers and outputs to a serialized ModelProto when they follow it.

    The outputs are float32 of two dimensions. Protobuf merges messages that follow one another: it joins
    their lists. The weights hold no numbers; they are bound by their names.
    """
    fields = [_bytes(1, node) for node in nodes]
    for name, array in weights.items():
        location = _text(1, "location") + _text(2, BOUND)
        tensor = [_key(1, 0) + _varint(side) for side in array.shape]
        tensor += [_key(2, 0) + _varint(ELEMENT_TYPES[array.dtype]), _text(8, name)]
        tensor += [_bytes(13, location), _key(14, 0) + _varint(EXTERNAL)]
        fields.append(_bytes(5, b"".join(tensor)))
    shape = _bytes(2, _bytes(1, b"") * 2)
    matrix = _bytes(1, _key(1, 0) + _varint(ELEMENT_TYPES[np.dtype(np.float32)]) + shape)
    fields += [_bytes(12, _text(1, name) + _bytes(2, matrix)) for name in outputs]
    return _bytes(7, b"".join(fields))


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _bytes(field, content.encode())

"""The files of weights that an ONNX file names, read without the onnx package and without their numbers.

The numbers of fields are those of onnx.proto (onnx 1.23).
"""

import re
from collections.abc import Iterator
from typing import Final

from app.checkpoints.budget import Budget
from app.checkpoints.protobuf import Value, fields, messages
from app.errors import CheckpointError

GRAPH, INITIALIZER, EXTERNAL_DATA, LOCATION = 7, 5, 13, 14  # of ModelProto, GraphProto, and TensorProto
IS_EXTERNAL: Final = 1  # TensorProto.DataLocation
MAX_FILES: Final = 100
FILE_NAME: Final = re.compile(r"(?!\.)[\w.+() -]{1,200}")


def data_files(model: memoryview, budget: Budget) -> tuple[str, ...]:
    """Return the names of the files beside a model that hold its weights; none if it has its own.

    Raises CheckpointError for names of files elsewhere, ValueError where the model is damaged.
    """
    names = dict[str, None]()
    for graph in messages(model, GRAPH, budget):
        for tensor in messages(graph, INITIALIZER, budget):
            found = list(fields(tensor, budget))
            if (LOCATION, IS_EXTERNAL) in found:
                names.update(dict.fromkeys(_locations(found, budget)))
    for name in names:
        if not FILE_NAME.fullmatch(name) or len(names) > MAX_FILES:
            raise CheckpointError(
                f"The ONNX file keeps weights in {name[:80]!r}, which is not a file beside it: export it "
                "again, in one file."
            )
    return tuple(names)


def _locations(found: list[tuple[int, Value]], budget: Budget) -> Iterator[str]:
    for number, entry in found:
        if number == EXTERNAL_DATA and isinstance(entry, memoryview):
            pair = {key: bytes(text) for key, text in fields(entry, budget) if not isinstance(text, int)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode()

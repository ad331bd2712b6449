"""The index of the shipped graphs: for each a weight that few others have, and its other names.

With it the graph of a checkpoint is found without reading every description. `index.json` beside this
module is written by `python -m app.graphs.indexing`, from the descriptions and from timm.
"""

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from app.types import Arrays

FILE: Final = Path(__file__).with_name("index.json")


class Entry(Struct, frozen=True):
    """`names` are those that one weight may have, `shape` is its shape.

    `aliases` are the other names of timm for a network that computes the same.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    def may_fit(self, arrays: Arrays) -> bool:
        """Tell whether the weight is there."""
        return any(name in arrays and arrays[name].shape == self.shape for name in self.names)


def read_index() -> dict[str, Entry]:
    """Return the entries by architecture."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Entry])

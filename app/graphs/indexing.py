"""Writes the index of the shipped graphs, from their descriptions and from timm.

Imports torch and timm, and only inside its functions.
"""

from collections import Counter

import msgspec
from msgspec.structs import replace

from app.graphs.graph import Graph, shipped_graphs
from app.graphs.index import FILE, Entry, read_index


def entries() -> dict[str, Entry]:
    """Return the entry of each shipped graph; the aliases are those of the index as it is."""
    graphs = shipped_graphs()
    common = Counter(item for graph in graphs for item in graph.weights.items())
    index = read_index()
    found = {}
    for graph in graphs:
        entry = _telltale(graph, common)
        known = index.get(graph.architecture)
        found[graph.architecture] = replace(entry, aliases=known.aliases if known else ())
    return found


def _telltale(graph: Graph, common: Counter[tuple[str, tuple[int, ...]]]) -> Entry:
    """Return the entry with the weight that the fewest graphs have."""
    name, shape = min(graph.weights.items(), key=lambda item: common[item])
    own = [old + name.removeprefix(new) for old, new in graph.prefixes.items() if name.startswith(new)]
    return Entry((name, *own), shape)


def write(index: dict[str, Entry]) -> None:
    """Write the index, a line each."""
    encode = msgspec.json.encode
    lines = [b"%s:%s" % (encode(name), encode(entry)) for name, entry in index.items()]
    FILE.write_bytes(b"{\n" + b",\n".join(lines) + b"\n}\n")


if __name__ == "__main__":
    write(entries())

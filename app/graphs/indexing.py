"""Writes the index of the shipped graphs, from their descriptions and from timm.

Imports torch and timm, and only inside its functions.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from app.graphs.bodies import TIMM, import_fastai
from app.graphs.graph import Graph, shipped_graphs
from app.graphs.index import FILE, Entry, read_index
from app.graphs.module_builder import is_plain

RANDOM: Final = ("drop", "training", "inplace")  # in attributes without effect on an answer


def entries(aliases: Mapping[str, tuple[str, ...]]) -> dict[str, Entry]:
    """Return the entry of each shipped graph, with these aliases by architecture."""
    graphs = shipped_graphs()
    common = Counter(item for graph in graphs for item in graph.weights.items())
    return {
        graph.architecture: replace(_telltale(graph, common), aliases=aliases.get(graph.architecture, ()))
        for graph in graphs
    }


def _telltale(graph: Graph, common: Counter[tuple[str, tuple[int, ...]]]) -> Entry:
    """Return the entry with the weight that the fewest graphs have."""
    name, shape = min(graph.weights.items(), key=lambda item: common[item])
    own = [old + name.removeprefix(new) for old, new in graph.prefixes.items() if name.startswith(new)]
    return Entry((name, *own), shape)


def known_aliases() -> dict[str, tuple[str, ...]]:
    """Return the aliases in the index."""
    return {name: entry.aliases for name, entry in read_index().items()}


def find_aliases() -> dict[str, tuple[str, ...]]:
    """Return the other names in timm of the networks that the shipped graphs compute. Takes minutes."""
    import_fastai()
    registry = importlib.import_module("timm.models._registry")
    shipped = {
        graph.architecture.removeprefix(TIMM): graph.architecture
        for graph in shipped_graphs()
        if "0.model." in {new[:8] for new in graph.prefixes.values()} | {old[:8] for old in graph.prefixes}
    }
    shipped = {name: graph for name, graph in shipped.items() if registry.is_model(name)}
    modules = {registry._model_to_module[name] for name in shipped} | {"deit"}  # most are the usual vit
    names = [name for name in registry.list_models() if registry._model_to_module[name] in modules]
    found = {name: _signature(name) for name in names}
    graph_of = {found[name]: graph for name, graph in shipped.items()}
    aliases: dict[str, list[str]] = {}
    for name, signature in found.items():
        if name not in shipped and signature in graph_of:
            aliases.setdefault(graph_of[signature], []).append(name)
    for old, new in registry._deprecated_models.items():
        if graph := graph_of.get(found.get(registry.get_arch_name(new))):
            aliases.setdefault(graph, []).append(old)
    return {graph: tuple(sorted(names)) for graph, names in aliases.items()}


def _signature(name: str) -> Hashable:
    """Return a value that two networks of timm share only if they compute the same: their modules' classes,
    plain attributes, and shapes.
    """
    torch = importlib.import_module("torch")
    try:
        with torch.device("meta"):
            model = importlib.import_module("timm").create_model(name)
    except Exception:  # some compute numbers while they are made
        return name
    shapes = tuple((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())
    return hash((shapes, *((path, _attributes(module)) for path, module in model.named_modules())))


def _attributes(module: Any) -> Hashable:
    plain = {key: value for key, value in vars(module).items() if key[0] != "_" and is_plain(value)}
    return type(module).__name__, str(
        {key: plain[key] for key in sorted(plain) if not key.startswith(RANDOM)}
    )


def write(index: dict[str, Entry]) -> None:
    """Write the index, a line each."""
    encode = msgspec.json.encode
    lines = [b"%s:%s" % (encode(name), encode(entry)) for name, entry in index.items()]
    FILE.write_bytes(b"{\n" + b",\n".join(lines) + b"\n}\n")


if __name__ == "__main__":
    write(entries(find_aliases() if "--aliases" in sys.argv else known_aliases()))

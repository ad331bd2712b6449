"""The shipped bodies: weightless ONNX graphs, one `<architecture>.onnx` with a `<architecture>.json` beside
it.

Knows which graph fits a checkpoint, by the names and shapes of its tensors. `learner.py` writes these files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from app.errors import ArchitectureUnknown

FOLDER: Final = Path(__file__).parent
COUNTER: Final = "num_batches_tracked"  # BatchNorm's, of no use after training


@dataclass(frozen=True)
class Graph:
    """A body without its weights.

    `weights` maps the state-dict names that the graph binds to their shapes; `unused` are names that the
    architecture has and its graph does not need; `channels` is the C of the (N, C, h, w) feature map.
    """

    architecture: str
    path: Path
    weights: dict[str, tuple[int, ...]]
    unused: frozenset[str]
    channels: int

    def misfits(self, arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
        """What keeps a checkpoint from being this architecture, one phrase a tensor; empty if it fits."""
        found = {n: a.shape for n, a in arrays.items() if n.startswith("0.") and not n.endswith(COUNTER)}
        missing = [f"{name} is missing" for name in self.weights if name not in found]
        other = [
            f"{name} is {found[name]}, expected {shape}"
            for name, shape in self.weights.items()
            if name in found and found[name] != shape
        ]
        extra = [
            f"{name} is not known" for name in found if name not in self.weights and name not in self.unused
        ]
        return missing + other + extra


def shipped_graphs(folder: Path = FOLDER) -> list[Graph]:
    """All graphs in a folder, by name."""
    return [_read_graph(path) for path in sorted(folder.glob("*.json"))]


def _read_graph(path: Path) -> Graph:
    description = json.loads(path.read_text())
    return Graph(
        architecture=description["architecture"],
        path=path.with_suffix(".onnx"),
        weights={name: tuple(shape) for name, shape in description["weights"].items()},
        unused=frozenset(description["unused"]),
        channels=description["channels"],
    )


def find_graph(arrays: Mapping[str, npt.NDArray[Any]], architecture: str = "") -> Graph:
    """The graph that fits a checkpoint's tensors, or that of `architecture`, which must fit them too.

    Raises ArchitectureUnknown, naming what was found and what to do.
    """
    graphs = {graph.architecture: graph for graph in shipped_graphs()}
    if architecture:
        if architecture not in graphs:
            raise ArchitectureUnknown(
                f"There is no graph of '{architecture}'; there are {', '.join(graphs)}. "
                f"{how_to_export(architecture)}"
            )
        if misfits := graphs[architecture].misfits(arrays):
            raise ArchitectureUnknown(
                f"The file is no {architecture}: {_some(misfits)}. Correct the setting architecture, or take "
                "it out: shipped architectures are recognised."
            )
        return graphs[architecture]
    fitting = [graph for graph in graphs.values() if not graph.misfits(arrays)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(graph.architecture for graph in fitting)
        raise ArchitectureUnknown(f"The file fits {names} alike: say which in the setting architecture.")
    nearest = min(graphs.values(), key=lambda graph: len(graph.misfits(arrays)))
    raise ArchitectureUnknown(
        f"The tensors in the file fit none of {', '.join(graphs)}; the nearest, {nearest.architecture}, "
        f"differs: {_some(nearest.misfits(arrays))}. {how_to_export('ARCHITECTURE')}"
    )


def how_to_export(architecture: str) -> str:
    """The sentence that says how to make a graph that is not shipped."""
    return (
        "For another architecture run `pip install -r requirements.txt` and "
        f"`python -m app graph {architecture}`, with fastai's name for it, and deploy the two files it "
        "writes."
    )


def _some(misfits: list[str]) -> str:
    return "; ".join(misfits[:5]) + (f"; and {len(misfits) - 5} more" if len(misfits) > 5 else "")

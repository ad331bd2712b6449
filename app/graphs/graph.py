"""The shipped bodies: weightless ONNX graphs in `data/`, one `<architecture>.onnx` beside its `.json`.

Tells which graph fits a checkpoint, by the names and shapes of its tensors. `export.py` and `quantize.py`
write these files.
"""

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from app.checkpoints.fingerprint import Layers, strange_layers
from app.errors import ArchitectureUnknown, plain
from app.graphs.index import read_index
from app.types import Array, Arrays, Size

FOLDER: Final = Path(__file__).parent / "data"
COUNTER: Final = "num_batches_tracked"  # BatchNorm's, of no use after training
EPSILON: Final = np.float32(1e-5)  # torch.nn.BatchNorm's default, which fastai leaves alone
WHOLE: Final = ("whole",)  # the head steps of a graph that ends with the logits

# Names of the head that people put behind a library's body, in place of its own or beside an Identity.
OTHER_HEAD: Final = re.compile(r"(fc|classifier|head|linear|output|out|logits|last_linear)(\d+|_\w+)?\.")

logger = logging.getLogger(__name__)


class Int8(Struct, frozen=True):
    """The companions of a graph, made by `quantize.py`: `path` computes in int8, `ranges` tells
    the smallest and the largest number in each of `tensors`.

    `convolutions` has the modules that are taken together: of a Conv its BatchNorm, and the tensor it reads.
    """

    convolutions: dict[str, tuple[str, str]]
    tensors: tuple[str, ...]
    path: Path = Path()  # as `ranges`, not in the file: known by where that is
    ranges: Path = Path()


class Graph(Struct, frozen=True):
    """A body without its weights.

    `weights` maps the state-dict names that the graph binds to their shapes; `unused` are names that the
    architecture has and its graph does not need; `channels` is the C of the (N, C, h, w) feature map, or of
    the (N, C) features of a transformer. `size` is the one height and width it takes, None where it takes
    any. `prefixes` maps the names that its library gives to its parts to those that fastai gives; `head` are
    the steps of the library's own head, for `head.read_head`; both are empty where that is not served.
    `layers` counts those that names and shapes do not tell, as `checkpoints.fingerprint` does.
    `int8` is None where the body has no companion that computes in int8.
    """

    architecture: str
    weights: dict[str, tuple[int, ...]]
    unused: frozenset[str]
    channels: int
    size: tuple[int, int] | None = None
    prefixes: dict[str, str] = {}
    layers: dict[str, int] = {}
    head: tuple[str, ...] = ()
    int8: Int8 | None = None
    path: Path = Path()  # not in the file: known by where that is

    def float32(self, arrays: Arrays) -> dict[str, Array]:
        """The arrays that the graph binds: aligned float32 in the machine's order. What is so already is not
        copied.
        """
        return {name: np.require(arrays[name], np.float32, ["C", "ALIGNED"]) for name in self.weights}

    def fits(self, arrays: Arrays) -> bool:
        """Whether a checkpoint is this architecture. Quick: the first weights tell most of them apart."""
        return self._fits(arrays) or (self._has_own_names(arrays) and self._fits(self._renamed(arrays)))

    def misfits(self, arrays: Arrays) -> list[str]:
        """Return the differences from this architecture, one phrase a tensor; empty if it fits."""
        return min(self._misfits(arrays), self._misfits(self._renamed(arrays)), key=len)

    def rename(self, arrays: Arrays) -> dict[str, Array]:
        """The same arrays with the body's under fastai's names, which they have already in a fastai file.

        Auxiliary classifiers beside the body are left out.
        """
        renamed = arrays if self._fits(arrays) else self._renamed(arrays)
        beside = {name for name in self.unused if not name.startswith("0.")}
        return {name: array for name, array in renamed.items() if name not in beside}

    def _fits(self, arrays: Arrays) -> bool:
        found = all(name in arrays and arrays[name].shape == shape for name, shape in self.weights.items())
        return found and not self._misfits(arrays)

    def _has_own_names(self, arrays: Arrays) -> bool:
        """Whether the first weight is there under the name that the library gives it."""
        first = next(iter(self.weights))
        return any(
            first.startswith(new) and old + first.removeprefix(new) in arrays
            for old, new in self.prefixes.items()
        )

    def _misfits(self, arrays: Arrays) -> list[str]:
        found = {name: array.shape for name, array in arrays.items() if not name.endswith(COUNTER)}
        missing = [f"{name} is missing" for name in self.weights if name not in found]
        other = [
            f"{name} is {found[name]}, expected {shape}"
            for name, shape in self.weights.items()
            if name in found and found[name] != shape
        ]
        known = self.weights.keys() | self.unused
        extra = [f"{name} is not known" for name in found if name not in known and not self._in_head(name)]
        return missing + other + extra

    def _renamed(self, arrays: Arrays) -> dict[str, Array]:
        """From the library's own names: the longest prefix decides."""
        prefixes = sorted(self.prefixes, key=len, reverse=True)
        names = {}
        for name in arrays:
            head = self._in_own_head(name) or (name.startswith("1.") and "1." not in self.prefixes)
            old = None if head else next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            names[name] = name if old is None else self.prefixes[old] + name.removeprefix(old)
        return {names[name]: array for name, array in arrays.items()}

    def _in_head(self, name: str) -> bool:
        """Whether a name is one of fastai's head, or of the library's own."""
        return name.startswith("1.") or self._in_own_head(name)

    def _in_own_head(self, name: str) -> bool:
        steps = [step.partition(" ") for step in self.head]
        modules = [rest.split(" ")[0] for kind, _, rest in steps if kind in ("linear", "norm")]
        return any(name.startswith(f"{module}.") or OTHER_HEAD.match(name) for module in modules)


class Shown(Struct, frozen=True):
    """The input of a network: the channels, and the (height, width), None where every photo has its own."""

    channels: int = 3
    size: Size | None = (224, 224)


def channels_of(arrays: Arrays) -> int:
    """Return how many channels a picture has for the network: those of its first convolution."""
    first = next((array for array in arrays.values() if array.ndim == 4), None)
    return 3 if first is None else int(first.shape[1])


def with_color(arrays: Arrays) -> Arrays:
    """Return the same arrays for pictures in color, of which a gray network sees the first channel alone."""
    if channels_of(arrays) != 1:
        return arrays
    name = next(name for name, array in arrays.items() if array.ndim == 4)
    widened = np.pad(np.asarray(arrays[name]), ((0, 0), (0, 2), (0, 0), (0, 0)))
    return {**arrays, name: widened}


_DESCRIPTION: Final = msgspec.json.Decoder(Graph)


def shipped_graphs() -> list[Graph]:
    """Return all graphs, by name. Slow: use `find_graph` for one."""
    return [read_graph(path) for path in _descriptions()]


def shipped_names() -> set[str]:
    """Return the names of all graphs."""
    return {path.stem for path in _descriptions()}


def _descriptions() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def read_graph(path: Path) -> Graph:
    """The graph that a .json file describes; its .onnx files stand beside it."""
    graph = _DESCRIPTION.decode(path.read_bytes())
    int8 = graph.int8 and replace(
        graph.int8, path=path.with_suffix(".int8.onnx"), ranges=path.with_suffix(".ranges.onnx")
    )
    return replace(graph, path=path.with_suffix(".onnx"), int8=int8)


def fitting_graphs(arrays: Arrays, layers: Layers | None = None) -> list[Graph]:
    """Return the shipped graphs whose names and shapes are those of a checkpoint.

    `layers` are those of its module tree, if the file has one: of graphs that fit alike, they tell which it
    is. Raises ArchitectureUnknown where they are those of none.
    """
    index = read_index()
    paths = [path for path in _descriptions() if path.stem not in index or index[path.stem].may_fit(arrays)]
    fitting = [graph for graph in map(read_graph, paths) if graph.fits(arrays)]
    if not layers or not fitting:
        return fitting
    strange = [strange_layers(layers, graph.layers) if graph.layers else [] for graph in fitting]
    if all(strange):
        nearest = min(strange, key=len)
        raise ArchitectureUnknown(
            f"The network in the file has the names and shapes of {fitting[0].architecture}, but not its "
            f"layers: it has {_some(nearest)}."
        )
    return [graph for graph, found in zip(fitting, strange, strict=True) if not found]


def find_graph(arrays: Arrays, architecture: str = "", layers: Layers | None = None) -> Graph:
    """Return the graph that fits a checkpoint's tensors, and the `layers` of its module tree.

    `architecture` chooses where several do. Raises ArchitectureUnknown, with the nearest architecture and a
    remedy.
    """
    fitting = fitting_graphs(arrays, layers)
    names = [graph.architecture for graph in fitting]
    if named := _named(fitting, architecture):
        return named
    if len(fitting) > 1:
        raise ArchitectureUnknown(
            f"The file fits {' and '.join(names)} alike: say in the setting architecture which of them you "
            "trained."
        )
    if fitting:
        if architecture and layers is None and not _is_known(architecture):
            raise ArchitectureUnknown(
                f"The setting architecture is {architecture}, and the tensors in the file are also those of "
                f"{names[0]}, which may compute something else. If you trained {names[0]}, set architecture "
                f"to that. {how_to_export(architecture, names)}"
            )
        if architecture:
            logger.info("architecture is %s, but the file is %s, which is served", architecture, *names)
        return fitting[0]
    graphs = shipped_graphs()
    raise ArchitectureUnknown(
        f"The tensors in the file fit none of the {len(graphs)} architectures that are shipped; "
        f"{_difference(graphs, arrays)}. {how_to_export(architecture, shipped_names())}"
    )


def _named(fitting: Sequence[Graph], architecture: str) -> Graph | None:
    """Return the graph that the setting means: by its name, timm's name, or that with a tag for its weights.

    Under one of its other names it is returned with that name, whose evaluation may be another.
    """
    base = architecture.removeprefix("timm.").partition(".")[0]
    for name in (architecture, f"timm.{architecture}", base, f"timm.{base}"):
        for graph in fitting:
            if graph.architecture == name:
                return graph
    index = read_index()
    for graph in fitting:
        entry = index.get(graph.architecture)
        if entry and base in entry.aliases:
            return replace(graph, architecture=base)
    return None


def _is_known(architecture: str) -> bool:
    """Tell whether a graph is shipped under this name, or under another one of the same network."""
    base = architecture.removeprefix("timm.").partition(".")[0]
    aliases = {alias for entry in read_index().values() for alias in entry.aliases}
    return not {architecture, base, f"timm.{base}"}.isdisjoint(shipped_names() | aliases)


def _difference(graphs: list[Graph], arrays: Arrays) -> str:
    """Say how the nearest architecture differs, if most of its names are there; else quote the file's own."""
    nearest = min(graphs, key=lambda graph: len(graph.misfits(arrays)))
    misfits = nearest.misfits(arrays)
    if len(misfits) < len(nearest.weights) / 2:
        return f"the nearest, {nearest.architecture}, differs: {_some(misfits)}"
    return f"they begin with {', '.join(plain(name, 60) for name in list(arrays)[:3])}"


def how_to_export(architecture: str, shipped: Collection[str]) -> str:
    """Return the sentence on how to make a graph that is not shipped."""
    wanted = "ARCHITECTURE" if architecture in ("", *shipped) else architecture
    return (
        f"If it is of torchvision, fastai or timm, run `python -m app graph {wanted}` with its name there, "
        "where requirements.txt is installed, and deploy the files it writes. If it is your own network, "
        "save it as ONNX with torch.onnx.export, and deploy that."
    )


def _some(misfits: list[str]) -> str:
    return "; ".join(plain(misfit) for misfit in misfits[:5]) + (
        f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
    )

"""The contract of an engine: from a recognized network and a pipeline to outputs.

A new engine is a module beside this one, with a function `load` of type `Load`, a row of `settings.ENGINES`,
and its test.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from PIL import Image

from app.checkpoints.module_tree import modules_of
from app.checkpoints.records import Call
from app.engines.head import Head, read_head
from app.graphs.graph import Graph, channels_of
from app.photos.transforms import Preprocess
from app.types import Arrays, Float32, Size

MAX_TOGETHER = 4_000_000  # pixels of photos that are computed at once: sixteen of 500 x 500
WRITERS = {1: "fastai v1", 2: "fastai v2", 0: "torchvision or timm"}  # by the generation of the head


class Output(Struct, frozen=True):
    """The network's output for one photo.

    `probabilities` is (classes,) float32; `features` is the pooled feature map they are computed from.
    """

    probabilities: Float32
    features: Float32


class Recognized(Protocol):
    """The facts about a recognized network before it is built.

    `generation` is the generation of fastai that wrote the head: 1 or 2; 0 for other libraries. `outputs` is
    the number of classes; `binary` tells whether one output in the file stands for two of them; `labels` are
    their names, where the network has them. `size` is the only (height, width) that the network takes, None
    where it takes any, `channels` is 3, or 1 for gray pictures. `writer` is the library that the names in the
    file belong to. `known` are the settings that describe a preprocessing inside the network, mostly none.
    """

    @property
    def architecture(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def binary(self) -> bool: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> Size | None: ...
    @property
    def channels(self) -> int: ...
    @property
    def writer(self) -> str: ...
    @property
    def known(self) -> Mapping[str, Any]: ...


class Network(Struct, frozen=True):
    """A checkpoint's weights under the names of the graph that they fit, and the head behind it."""

    graph: Graph
    arrays: Arrays
    head: Head
    channels: int = 3

    def __repr__(self) -> str:
        """Leave out the arrays, as a Checkpoint's does."""
        return f"Network({self.architecture!r})"

    @property
    def architecture(self) -> str:
        """The name of the graph."""
        return self.graph.architecture

    @property
    def generation(self) -> int:
        """That of the head."""
        return self.head.generation

    @property
    def outputs(self) -> int:
        """Those of the head."""
        return self.head.outputs

    @property
    def size(self) -> Size | None:
        """That of the graph."""
        return self.graph.size

    @property
    def labels(self) -> tuple[str, ...]:
        """None: a graph has no names of classes."""
        return ()

    @property
    def known(self) -> Mapping[str, Any]:
        """None: a checkpoint holds no preprocessing."""
        return {}

    @property
    def binary(self) -> bool:
        """That of the head."""
        return self.head.binary

    @property
    def writer(self) -> str:
        """That of the head."""
        return WRITERS[self.generation]


def fitted(
    graph: Graph, arrays: Arrays, channels: int = 0, module: Call | None = None, activation: str = "auto"
) -> Network:
    """Return the network of a graph that is known to fit.

    `channels` are the pictures', where the arrays have more. `module` is the module tree, where the file has
    it; `activation` the setting `head_activation`. Raises CheckpointError for an unknown head.
    """
    renamed = graph.rename(arrays)
    parts = {name.partition(".")[0] for name in renamed if not name.startswith("0.")}
    modules = modules_of(module, parts) if module else None
    head = read_head(renamed, graph.channels, graph.head, modules, activation)
    return Network(graph, renamed, head, channels or channels_of(arrays))


def same_sized(pixels: Sequence[Float32]) -> Iterator[Sequence[Float32]]:
    """Split arrays (C, H, W) into runs of one shape, each of at most MAX_TOGETHER pixels."""
    start = 0
    for end in range(1, len(pixels) + 1):
        full = (end + 1 - start) * pixels[start][0].size > MAX_TOGETHER
        if end == len(pixels) or pixels[end].shape != pixels[start].shape or full:
            yield pixels[start:end]
            start = end


Prepare = Callable[[Image.Image], Any]  # a decoded photo -> the input of `Run`
Run = Callable[[Sequence[Any]], list[Output]]  # N inputs -> N outputs
Bind = Callable[[Preprocess], tuple[Prepare, Run]]  # an engine's, behind any pipeline
Look = Callable[[Any], tuple[Output, Float32]]  # an input -> its output, and its (C, h, w) feature map


class Engine(Protocol):
    """A network ready to compute behind any pipeline.

    `name` is for people; the model card lists the versions of `packages`. Up to `callers` threads may call
    `Run` at once; an engine for one caller gets batches. `exact` means that photos are
    always decoded at full size. `predict_with_features` is None where no feature map can explain an answer.
    """

    @property
    def name(self) -> str: ...
    @property
    def packages(self) -> tuple[str, ...]: ...
    @property
    def callers(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def predict_with_features(self) -> Look | None: ...

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions that answer photos through this pipeline."""

    def quantized(self, pixels: Iterable[Float32]) -> "Engine":
        """Return the same engine in int8, calibrated on photos, (3, H, W) float32 each.

        Raises Int8Unavailable with the reason.
        """


Load = Callable[[Network, Sequence[str], bool], Engine]  # network, classes, multi_label

"""One ONNX file from a photo to its probabilities: the pipeline, the body with its weights, the head."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from app import __version__
from app.engines.contract import Network
from app.engines.head_graph import SCORES, head_graph
from app.engines.photo_file import CLASSES, IMAGE, PROBABILITIES
from app.exporting.pipeline import PIXELS, write_pipeline
from app.exporting.values import Writer
from app.graphs.protobuf import (
    all_bytes,
    is_external,
    message,
    metadata,
    number,
    tensor,
    tensor_name,
    text,
    value_info,
)
from app.photos.transforms import Preprocess
from app.types import Array, Arrays

IR_VERSION: Final = 9  # the newest that ONNX Runtime 1.17 reads, the first with the operators of our graphs
GRAPH, OPSETS = 7, 8  # fields of ModelProto
NODES, INITIALIZERS, INPUTS = 1, 5, 11  # fields of GraphProto
SMALL: Final = 1024  # numbers; arrays up to this stay float32 with `half`


def onnx_model(
    network: Network,
    preprocess: Preprocess,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
) -> bytes:
    """Return a ModelProto that answers one decoded photo.

    The input `image` is (height, width, 3 or 4) uint8: RGB and perhaps alpha, which is dropped. The outputs
    are `probabilities`, (classes,) float32, and `classes`, (classes,) texts. `half` keeps the weights as
    float16, and computes in float32 all the same. `notes` become the metadata.
    """
    continuation, head = head_graph(network.head, multi_label)
    whole = network.graph.path.read_bytes() + continuation
    body = b"".join(all_bytes(whole, GRAPH))
    channels = _channels(body)
    before, behind = Writer("photo"), Writer("answer")
    write_pipeline(before, preprocess, channels)
    _write_answer(behind, classes)
    weights = {**network.graph.float32(network.arrays), **head}
    nodes, initializers = _with_numbers(all_bytes(body, INITIALIZERS), weights, half=half)
    nodes += before.nodes + [message(NODES, each) for each in all_bytes(body, NODES)] + behind.nodes
    initializers += [
        tensor(name, array) for writer in (before, behind) for name, array in writer.constants.items()
    ]
    graph = [
        *nodes,
        text(2, network.architecture),
        *(message(INITIALIZERS, each) for each in initializers),
        message(INPUTS, value_info(IMAGE, np.uint8, ("height", "width", "channels"))),
        message(12, value_info(PROBABILITIES, np.float32, (len(classes),))),
        message(12, value_info(CLASSES, np.str_, (len(classes),))),
    ]
    model = [
        number(1, IR_VERSION),
        text(2, "fastai-now"),
        text(3, __version__),
        message(GRAPH, b"".join(graph)),
    ]
    model += [message(OPSETS, each) for each in all_bytes(whole, OPSETS)]
    return b"".join([*model, metadata(notes or {})])


def _channels(body: bytes) -> int:
    """Return the number of channels that the input PIXELS of a graph has."""
    (found,) = (each for each in all_bytes(body, INPUTS) if all_bytes(each, 1) == [PIXELS.encode()])
    for field in (2, 1, 2):  # type, tensor_type, shape
        (found,) = all_bytes(found, field)
    return all_bytes(found, 1)[1][1]  # the second dimension: key, then a length below 128


def _write_answer(writer: Writer, classes: Sequence[str]) -> None:
    scores = writer.input(SCORES, np.float32)
    writer.add("Squeeze", scores, writer.constant([0], np.int64), output=PROBABILITIES)
    # not a constant for ONNX Runtime, which before 1.17 cannot fold texts, and warns since
    nothing = scores.side(0) - 1
    order = writer.constant(np.arange(len(classes)), np.int64) + nothing
    names = writer.constant(np.array(classes), np.str_)
    writer.add("Gather", names, order, output=CLASSES, axis=0)


def _with_numbers(
    tensors: Iterable[bytes], weights: Arrays, *, half: bool
) -> tuple[list[bytes], list[bytes]]:
    """Return nodes and initializers: of each tensor without numbers the one that `weights` has.

    With `half` large ones are float16, and the nodes make them float32.
    """
    widened = Writer("weights")
    initializers = []
    for each in tensors:
        if not is_external(each):
            initializers.append(each)
            continue
        name = tensor_name(each)
        array = weights[name]
        if half and array.dtype == np.float32 and array.size > SMALL:
            initializers.append(tensor(f"{name}.half", _halved(array)))
            widened.add("Cast", widened.input(f"{name}.half", np.float16), output=name, to=1)
        else:
            initializers.append(tensor(name, array))
    return widened.nodes, initializers


def _halved(array: Array) -> Array:
    limit = np.finfo(np.float16).max
    return np.clip(array, -limit, limit).astype(np.float16)

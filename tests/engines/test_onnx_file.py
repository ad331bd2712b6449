"""ONNX files of other exporters: half precision, channels last, one output, names in the metadata."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.engines.onnx_file import OnnxFileEngine, WholeNetwork
from app.engines.onnx_trial import load_network

RANDOM = np.random.default_rng(2)
PIXELS = RANDOM.standard_normal((3, 8, 8), np.float32)


def write(
    folder: Path, outputs: int, last: bool = False, half: bool = False, end: str = "", **names: str
) -> np.ndarray:
    """Write the mean of each channel through a matrix; return that matrix."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    matrix = RANDOM.standard_normal((3, outputs)).astype(np.float16 if half else np.float32)
    shape = ["n", 8, 8, 3] if last else ["n", 3, 8, 8]
    axes = np.array([1, 2] if last else [2, 3])
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0)]
    nodes.append(helper.make_node("MatMul", ["means", "matrix"], ["logits" if end else "scores"]))
    if end:
        nodes.append(helper.make_node(end, ["logits"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("scores", kind, ["n", outputs])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(axes, "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, names)
    onnx.save(model, str(folder / "model.onnx"))
    return np.asarray(matrix, np.float32)


def answered(folder: Path) -> tuple[WholeNetwork, np.ndarray]:
    network = load_network(folder / "model.onnx")
    assert isinstance(network, WholeNetwork)
    (output,) = OnnxFileEngine(network).run([PIXELS])
    return network, output.probabilities


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(scores - scores.max())
    return exponents / exponents.sum()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_half_precision_and_channels_last_are_served(last: bool, half: bool, tmp_path: Path) -> None:
    matrix = write(tmp_path, 3, last, half)
    network, found = answered(tmp_path)
    assert (network.size, network.outputs) == ((8, 8), 3)
    np.testing.assert_allclose(found, softmax(PIXELS.mean((1, 2)) @ matrix), atol=1e-3)


@pytest.mark.parametrize("end", ["", "Sigmoid"])
def test_one_output_is_two_classes(end: str, tmp_path: Path) -> None:
    matrix = write(tmp_path, 1, end=end)
    network, found = answered(tmp_path)
    second = 1 / (1 + np.exp(-(PIXELS.mean((1, 2)) @ matrix)[0]))
    assert (network.binary, network.outputs) == (True, 2)
    np.testing.assert_allclose(found, [1 - second, second], atol=1e-5)


NAMES = ("""{0: 'cat', 1: 'dog', 2: "bird's"}""", """{"0": "cat", "1": "dog", "2": "bird's"}""")


@pytest.mark.parametrize("names", [*NAMES, """["cat", "dog", "bird's"]"""])
def test_the_names_in_the_metadata_are_used(names: str, tmp_path: Path) -> None:
    write(tmp_path, 3, names=names)
    assert answered(tmp_path)[0].labels == ("cat", "dog", "bird's")

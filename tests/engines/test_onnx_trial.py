"""ONNX files that ask for more than their size can explain: refused, and nothing but a child is the worse."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from app.engines.onnx_trial import Limits, open_network
from app.errors import CheckpointError

TIGHT = Limits(seconds=3, base=600_000_000)
Graph = tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[onnx.FunctionProto]]


def save(path: Path, graph: Graph, side: int = 8) -> Path:
    """A classifier of two classes, whose graph makes a scalar `extra` that is added to the scores."""
    nodes, weights, functions = graph
    ends = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("MatMul", ["means", "matrix"], ["logits"]),
        helper.make_node("Add", ["logits", "extra"], ["scores"]),
    ]
    matrix = numpy_helper.from_array(np.ones((3, 2), np.float32), "matrix")
    made = helper.make_graph(
        [*nodes, *ends],
        "model",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [matrix, *weights],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(made, opset_imports=imports, functions=functions, ir_version=9)
    onnx.save(model, str(path))
    return path


def constant(name: str, value: object, kind: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


def reduced(node: onnx.NodeProto, *weights: onnx.TensorProto) -> Graph:
    """The mean of a large array."""
    return [node, helper.make_node("ReduceMean", ["large"], ["extra"], keepdims=0)], list(weights), []


def nothing(_: int) -> Graph:
    return [], [constant("extra", 0, np.float32)], []


def tiled(gigabytes: int) -> Graph:
    node = helper.make_node("Tile", ["one", "times"], ["large"])
    return reduced(node, constant("one", [0], np.float32), constant("times", [gigabytes * 250_000_000]))


def expanded(gigabytes: int) -> Graph:
    node = helper.make_node("Expand", ["one", "shape"], ["large"])
    return reduced(node, constant("one", [0], np.float32), constant("shape", [gigabytes * 250, 1000, 1000]))


def filled(gigabytes: int) -> Graph:
    node = helper.make_node("ConstantOfShape", ["shape"], ["large"])
    return reduced(node, constant("shape", [gigabytes * 250_000, 1000]))


def counted(gigabytes: int) -> Graph:
    node = helper.make_node("Range", ["zero", "end", "step"], ["large"])
    ends = {"zero": 0, "end": gigabytes * 250_000_000, "step": 1}
    return reduced(node, *(constant(name, value, np.float32) for name, value in ends.items()))


def looped(times: int) -> Graph:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Cos", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    loop = helper.make_node("Loop", ["times", "true", "start"], ["extra"], body=body)
    weights = [
        constant("times", times * 10**9),
        constant("true", True, bool),
        constant("start", 0, np.float32),
    ]
    return [loop], weights, []


def nested(depth: int) -> Graph:
    """Functions that call each other twice: as many additions as 2 to the power of their number."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = []
    for number in range(depth + 24):
        domain, operator = ("own", f"f{number - 1}") if number else ("", "Neg")
        calls = [
            helper.make_node(operator, ["x"], ["a"], domain=domain),
            helper.make_node(operator, ["a"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("own", f"f{number}", ["x"], ["y"], calls, imports))
    call = helper.make_node(f"f{depth + 23}", ["start"], ["extra"], domain="own")
    return [call], [constant("start", 0, np.float32)], functions


def test_a_plain_network_passes(tmp_path: Path) -> None:
    assert open_network(save(tmp_path / "a.onnx", nothing(0)), limits=TIGHT).outputs == 2


@pytest.mark.slow
@pytest.mark.fault("M30")
@pytest.mark.parametrize("graph", [tiled, expanded, filled, counted, looped, nested])
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(2, 60))
def test_a_file_that_asks_for_more_than_its_size_explains_is_refused(
    graph: Callable[[int], Graph], size: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "model.onnx", graph(size))
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=r"within 3 s and 0\.6 GB of memory|ONNX Runtime cannot"):
        open_network(path, limits=TIGHT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    assert time.process_time() - cpu < 1


@pytest.mark.parametrize("side", [1025, 100_000, 2**40])
def test_pictures_of_a_size_that_nobody_takes_are_refused(side: int, tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", nothing(0), side)
    with pytest.raises(CheckpointError, match=r"at most 1024 px a side|cannot load"):
        open_network(path, limits=TIGHT)


def test_the_sentence_of_the_trial_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09\x12\x07pytorch" + b"\xff" * 50)
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load the file"):
        open_network(path, limits=TIGHT)

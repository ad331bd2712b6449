"""Which graph fits a checkpoint, and what is said when none does."""

from collections.abc import Mapping

import numpy as np
import pytest

from app import graphs
from app.checkpoint import read_checkpoint
from app.errors import ArchitectureUnknown
from app.graphs import Graph, find_graph, shipped_graphs
from tests.conftest import V1_CHECKPOINT


def arrays_of(graph: Graph) -> dict[str, np.ndarray]:
    """What a checkpoint of this architecture holds, but for its numbers and its head."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in graph.weights.items()}


def test_the_architectures_that_people_deploy_are_shipped() -> None:
    shipped = {graph.architecture for graph in shipped_graphs()}
    assert shipped >= {"resnet18", "resnet34", "resnet50", "squeezenet1_1", "tf_efficientnet_lite0"}


@pytest.mark.parametrize("graph", shipped_graphs(), ids=lambda graph: graph.architecture)
def test_every_shipped_graph_is_found_by_its_tensors_alone(graph: Graph) -> None:
    assert find_graph(arrays_of(graph)) == graph
    assert find_graph(arrays_of(graph), graph.architecture) == graph


def test_a_real_v1_file_is_recognised() -> None:
    assert find_graph(read_checkpoint(V1_CHECKPOINT).arrays).architecture == "squeezenet1_1"


@pytest.mark.parametrize("graph", shipped_graphs(), ids=lambda graph: graph.architecture)
def test_a_shipped_graph_holds_no_weights_and_no_traces_of_the_machine_that_made_it(graph: Graph) -> None:
    import onnx

    proto = onnx.load(str(graph.path), load_external_data=False)
    external = {tensor.name for tensor in proto.graph.initializer if tensor.external_data}
    assert external == set(graph.weights)
    assert graph.path.stat().st_size < 250_000
    assert b".py" not in graph.path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: {n: v for n, v in a.items() if "0.7.2." not in n},
            "the nearest, resnet34, differs: 0.7.2.conv1",
        ),
        (
            lambda a: {**a, "0.0.weight": np.zeros((64, 1, 7, 7))},
            r"is \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
        ),
        (lambda a: {**a, "0.9.weight": np.zeros(3)}, r"0\.9\.weight is not known"),
        (lambda a: {"conv.weight": np.zeros(3)}, "fit none of .*; and .* more.*python -m app graph"),
    ],
)
def test_tensors_that_fit_nothing_are_named_beside_the_nearest_architecture(change, message: str) -> None:  # type: ignore[no-untyped-def]
    resnet34 = next(graph for graph in shipped_graphs() if graph.architecture == "resnet34")
    with pytest.raises(ArchitectureUnknown, match=message):
        find_graph(change(arrays_of(resnet34)))


def test_a_wrong_architecture_setting_is_contradicted_by_the_file() -> None:
    arrays = read_checkpoint(V1_CHECKPOINT).arrays
    with pytest.raises(ArchitectureUnknown, match=r"The file is no resnet18: .* is missing"):
        find_graph(arrays, "resnet18")


def test_an_architecture_without_a_graph_says_how_to_make_one() -> None:
    with pytest.raises(ArchitectureUnknown, match=r"no graph of 'resnet999'.*python -m app graph resnet999"):
        find_graph({}, "resnet999")


def test_two_that_fit_alike_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shipped_graphs()[0]
    twin = Graph("twin", one.path, one.weights, one.unused, one.channels)
    monkeypatch.setattr(graphs, "shipped_graphs", lambda: [one, twin])
    arrays: Mapping[str, np.ndarray] = arrays_of(one)
    with pytest.raises(ArchitectureUnknown, match=f"fits {one.architecture} and twin alike: say which"):
        find_graph(arrays)
    assert find_graph(arrays, "twin") == twin

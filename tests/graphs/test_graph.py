"""Which graph fits a checkpoint, and what is said when none does."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from app.checkpoints.reader import read_checkpoint
from app.engines.contract import fitted
from app.engines.onnx_runtime import GraphEngine
from app.errors import ArchitectureUnknown
from app.graphs import graph as graphs
from app.graphs.bodies import TRANSFORMED, create_body
from app.graphs.graph import Graph, find_graph, shipped_graphs
from app.graphs.index import read_index
from app.graphs.indexing import entries, known_aliases
from tests.conftest import V1_CHECKPOINT


def arrays_of(graph: Graph) -> dict[str, np.ndarray]:
    """What a checkpoint of this architecture holds, but for its numbers and its head."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in graph.weights.items()}


def test_the_architectures_that_people_deploy_are_shipped() -> None:
    shipped = {graph.architecture for graph in shipped_graphs()}
    assert shipped >= {"resnet18", "resnet34", "resnet50", "squeezenet1_1", "tf_efficientnet_lite0"}


@pytest.mark.parametrize("graph", shipped_graphs(), ids=lambda graph: graph.architecture)
def test_every_shipped_graph_is_found_by_its_tensors_or_asked_for_beside_its_twin(graph: Graph) -> None:
    arrays = arrays_of(graph)
    assert find_graph(arrays, graph.architecture) == graph
    twins = [other.architecture for other in shipped_graphs() if other.weights == graph.weights]
    if twins == [graph.architecture]:
        assert find_graph(arrays) == graph
    else:
        with pytest.raises(ArchitectureUnknown, match=f"fits {' and '.join(twins)} alike"):
            find_graph(arrays)


def assert_computes(graph: Graph, model: Any, size: tuple[int, int]) -> None:
    """The graph with numpy's head computes what torch computes, whatever the numbers: up to float32's
    rounding.
    """
    import torch

    arrays = {name: tensor.numpy() for name, tensor in model.eval().state_dict().items()}
    network = fitted(find_graph(arrays, graph.architecture), arrays)
    assert network.graph.architecture == graph.architecture
    pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    engine = GraphEngine(network)
    ours = network.head.logits(np.stack([answer.features for answer in engine.run(list(pixels))]))
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()


def smallest_of_each_family() -> list[Graph]:
    """One graph for each kind of library head: it is the same within a family."""
    families: dict[Any, Graph] = {}
    for graph in sorted(shipped_graphs(), key=lambda graph: sum(map(math.prod, graph.weights.values()))):
        if graph.head:
            families.setdefault((graph.head, tuple(graph.prefixes)), graph)
    return list(families.values())


def all_or_smallest() -> list[Any]:
    """Every graph; those beside the smallest of each family are left to `make test-all`."""
    telling = {graph.architecture for graph in smallest_of_each_family()}
    return [
        pytest.param(graph, marks=() if graph.architecture in telling else pytest.mark.exhaustive)
        for graph in shipped_graphs()
    ]


@pytest.mark.parametrize("graph", all_or_smallest(), ids=lambda graph: graph.architecture)
def test_every_shipped_graph_computes_what_torch_computes_with_the_head_of_fastai(
    graph: Graph, vision: Any
) -> None:
    import torch

    torch.manual_seed(0)
    body = create_body(graph.architecture)
    with torch.no_grad():
        pool = body.eval()(torch.zeros(1, 3, *(graph.size or (96, 128)))).ndim == 4
    head = vision.create_head(graph.channels, 3, pool=pool)
    assert_computes(graph, torch.nn.Sequential(body, head), graph.size or (96, 128))


@pytest.mark.parametrize("graph", smallest_of_each_family(), ids=lambda graph: graph.architecture)
def test_a_graph_computes_what_torch_computes_with_the_head_of_its_library(graph: Graph, vision: Any) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    name = graph.architecture.removeprefix("timm.")
    if "0.model." in graph.prefixes.values():
        model = timm.create_model(name, num_classes=3)
    elif name.startswith("xresnet"):
        model = getattr(vision, name)(n_out=3)
    else:
        options = {"transform_input": True} if name.endswith(TRANSFORMED) else {}
        model = getattr(vision.models, name.removesuffix(TRANSFORMED))(num_classes=3, **options)
    assert_computes(graph, model, graph.size or (96, 128))


@pytest.mark.parametrize("head", ["fastai", "own"])
def test_timms_resnet_is_served_by_the_graph_of_torchvisions(head: str, vision: Any) -> None:
    import timm

    model = timm.create_model("resnet18", num_classes=3)
    if head == "fastai":
        model, _ = vision.create_timm_model("resnet18", 3, pretrained=False)
    resnet18 = next(graph for graph in shipped_graphs() if graph.architecture == "resnet18")
    assert_computes(resnet18, model, (96, 128))


def test_a_real_v1_file_is_recognized() -> None:
    assert find_graph(read_checkpoint(V1_CHECKPOINT).arrays).architecture == "squeezenet1_1"


@pytest.mark.parametrize("graph", shipped_graphs(), ids=lambda graph: graph.architecture)
@pytest.mark.torch
def test_a_shipped_graph_holds_no_weights_and_no_traces_of_the_machine_that_made_it(graph: Graph) -> None:
    import onnx

    for path in (graph.path, *([graph.int8.path, graph.int8.ranges] if graph.int8 else [])):
        initializers = onnx.load(str(path), load_external_data=False).graph.initializer
        if graph.int8 and path == graph.int8.path:
            inside = [tensor for tensor in initializers if not tensor.external_data]
            assert not any(onnx.numpy_helper.to_array(tensor).any() for tensor in inside)
        else:
            assert {tensor.name for tensor in initializers if tensor.external_data} == set(graph.weights)
        assert path.stat().st_size < 600_000
        assert b".py" not in path.read_bytes()


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
        (
            lambda a: {"conv.weight": np.zeros(3)},
            "they begin with conv.weight.*torch.onnx.export",
        ),
    ],
)
def test_tensors_that_fit_nothing_are_named_beside_the_nearest_architecture(change, message: str) -> None:  # type: ignore[no-untyped-def]
    resnet34 = next(graph for graph in shipped_graphs() if graph.architecture == "resnet34")
    with pytest.raises(ArchitectureUnknown, match=message):
        find_graph(change(arrays_of(resnet34)))


def test_a_wrong_architecture_setting_is_contradicted_by_the_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    arrays = read_checkpoint(V1_CHECKPOINT).arrays
    assert find_graph(arrays, "resnet18").architecture == "squeezenet1_1"
    assert "architecture is resnet18, but the file is squeezenet1_1" in caplog.text


def test_an_architecture_without_a_graph_says_how_to_make_one() -> None:
    with pytest.raises(ArchitectureUnknown, match=r"none of the .* shipped.*python -m app graph resnet999"):
        find_graph({}, "resnet999")


@pytest.mark.fault("M20")
def test_two_that_fit_alike_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shipped_graphs()[0]
    twin = replace(one, architecture="twin")
    monkeypatch.setattr(graphs, "fitting_graphs", lambda *arguments: [one, twin])
    arrays: Mapping[str, np.ndarray] = arrays_of(one)
    with pytest.raises(
        ArchitectureUnknown, match=f"fits {one.architecture} and twin alike: say in the setting architecture"
    ):
        find_graph(arrays)
    assert find_graph(arrays, "twin") == twin


def test_the_index_is_that_of_the_shipped_graphs() -> None:
    assert read_index() == entries(known_aliases()), "run python -m app.graphs.indexing"


@pytest.mark.slow
def test_few_descriptions_are_read_to_find_a_graph() -> None:
    index = read_index()
    for graph in shipped_graphs():
        assert sum(entry.may_fit(arrays_of(graph)) for entry in index.values()) <= 10


def test_a_swin_that_fastai_trained_with_an_older_timm_is_served(vision: Any) -> None:
    import torch
    from timm.models.swin_transformer import checkpoint_filter_fn

    torch.manual_seed(0)
    name = "swin_tiny_patch4_window7_224"
    body = create_body(name)
    model = torch.nn.Sequential(body, vision.create_head(768, 3, pool=False)).eval()
    older = {}
    for key, tensor in model.state_dict().items():
        for stage in (1, 2, 3):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        older[key] = tensor
    older |= dict(model.named_buffers())  # among them the masks, which newer versions do not save
    own = {key.removeprefix("0.model."): tensor for key, tensor in older.items() if key.startswith("0.")}
    body.model.load_state_dict(checkpoint_filter_fn(own, body.model))  # as timm reads its older files
    arrays = {key: tensor.numpy() for key, tensor in older.items()}
    network = fitted(find_graph(arrays), arrays)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).softmax(1).numpy()
    answer = GraphEngine(network).run(list(pixels))[0]
    np.testing.assert_allclose(answer.probabilities, expected[0], atol=1e-3)

"""What needs fastai and torch: exporting graphs, rebuilding learners, and saying when they are missing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from app.checkpoints.reader import read_checkpoint
from app.engines.contract import fitted
from app.engines.learner import rebuild
from app.engines.onnx_runtime import GraphEngine
from app.errors import ArchitectureUnknown
from app.graphs.bodies import TRANSFORMED, create_body
from app.graphs.export import export_graph
from app.graphs.graph import FOLDER, find_graph, shipped_graphs
from app.serving.recognize import recognize
from tests.conftest import ROOT, V1_CHECKPOINT


def test_the_exporter_makes_the_shipped_files_again(tmp_path: Path) -> None:
    path = export_graph("squeezenet1_1", tmp_path)
    assert path.read_bytes() == (FOLDER / path.name).read_bytes()
    assert path.with_suffix(".json").read_text() == (FOLDER / path.name).with_suffix(".json").read_text()


@pytest.mark.parametrize("size", [(224, 224), (160, 160), (192, 256)])
def test_a_graph_serves_every_image_size(size: tuple[int, int], vision: Any) -> None:
    body = create_body("tf_efficientnet_lite0")
    head = vision.create_head(1280, 4).eval()
    model = torch.nn.Sequential(body, head)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = find_graph(arrays, "tf_efficientnet_lite0")
    pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).softmax(1).numpy()
    answers = GraphEngine(fitted(graph, arrays)).run(list(pixels))
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-5)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureUnknown, match="has a classifier 'resnet35'"):
        export_graph("resnet35", tmp_path)


@pytest.mark.parametrize(
    ("architecture", "cause"),
    [
        ("fasterrcnn_resnet50_fpn", "is not exported: it draws boxes or key points on a photo"),
        ("quantized_resnet18", "is not exported: it computes in int8"),
        ("get_model", "Neither torchvision nor fastai nor timm has a classifier 'get_model'"),
    ],
)
def test_an_architecture_that_cannot_be_exported_is_named_with_the_cause(
    architecture: str, cause: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureUnknown, match=cause):
        export_graph(architecture, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_architecture_is_no_learner_of_this_one() -> None:
    network = recognize(read_checkpoint(V1_CHECKPOINT))
    other = replace(network, graph=replace(network.graph, architecture="squeezenet1_0"))
    with pytest.raises(ArchitectureUnknown, match=r"not a squeezenet1_0: .*Missing key"):
        rebuild(other)


@pytest.mark.parametrize("options", [{"lin_ftrs": [64, 32]}, {"concat_pool": False}, {"bn_final": True}])
def test_a_learner_is_rebuilt_with_the_head_that_the_file_has(
    options: dict[str, Any], make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = make_learner("squeezenet1_1", vision.Resize(64), **options)
    model = rebuild(recognize(read_checkpoint(learn.save("stage-2", with_opt=False))))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), learn.model(pixels))


@pytest.mark.parametrize("missing", ["torch", "timm", "fastai"])
def test_where_a_package_is_missing_the_exporter_says_how_to_install_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import app.cli; app.cli.main(['graph', 'resnet18'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"{missing} is not installed: run `pip install -r requirements.txt`" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_shipped_graph_names_an_architecture_that_fastai_has(vision: Any) -> None:
    import timm

    for graph in shipped_graphs():
        name = graph.architecture.removesuffix(TRANSFORMED)
        assert (
            hasattr(vision.models, name)
            or hasattr(vision, name)
            or name.removeprefix("timm.") in timm.list_models()
        )

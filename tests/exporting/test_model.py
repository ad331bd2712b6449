"""The exported model against the server, and against fastai's own `predict`."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app.checkpoints.reader import read_checkpoint
from app.engines.contract import Network, fitted
from app.engines.onnx_runtime import GraphEngine
from app.exporting.model import onnx_model
from app.graphs.graph import Graph, find_graph, shipped_graphs
from app.photos.decode import decode
from app.photos.transforms import Preprocess
from tests.conftest import BEARS, IMAGES, V1_CHECKPOINT, named
from tests.test_parity import TELLING

pytestmark = pytest.mark.slow

PHOTO = decode(IMAGES[5].read_bytes())


def answer(model: bytes, photo: Any) -> np.ndarray:
    probabilities, classes = ort.InferenceSession(model).run(None, {"image": np.asarray(photo)})
    assert probabilities.shape == classes.shape
    return probabilities  # type: ignore[no-any-return]


def untrained(graph: Graph) -> Network:
    """A network with weights that keep the numbers small, and fastai's head for three classes."""
    random = np.random.default_rng(4)
    output = onnx.load(graph.path, load_external_data=False).graph.output[0]
    pooled = len(output.type.tensor_type.shape.dim) == 2  # fastai then leaves out its pool and Flatten
    width, first = (graph.channels, 0) if pooled else (2 * graph.channels, 2)
    shapes = {**graph.weights, f"1.{first + 2}.weight": (3, width)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"1.{first}.{name}"] = (width,)
    arrays = {}
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) or 1
        values = random.standard_normal(shape) / np.sqrt(fan)
        arrays[name] = (np.abs(values) + 0.5 if name.endswith("running_var") else values).astype(np.float32)
    return fitted(graph, arrays)


COMMON = ("resnet34", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(g, id=g.architecture, marks=[] if g.architecture in COMMON else pytest.mark.exhaustive)
        for g in shipped_graphs()
    ],
)
def test_every_architecture_answers_as_the_server_does(graph: Graph) -> None:
    network = untrained(graph)
    preprocess = named(size=graph.size or (160, 160))
    model = onnx_model(network, preprocess, BEARS)
    if graph.architecture in COMMON:  # the checker takes seconds
        onnx.checker.check_model(model)
    (expected,) = GraphEngine(network).run([preprocess(PHOTO)])
    assert np.abs(answer(model, PHOTO) - expected.probabilities).max() <= 1e-5


def bears() -> Network:
    arrays = read_checkpoint(V1_CHECKPOINT).arrays
    return fitted(find_graph(arrays), arrays)


def test_the_answers_are_those_of_fastai_v1s_predict(v1_predictions: dict[str, np.ndarray]) -> None:
    session = ort.InferenceSession(onnx_model(bears(), named("fastai1"), BEARS))
    for photo in IMAGES:
        if photo.name in v1_predictions:
            image = decode(photo.read_bytes(), "ignore")
            found, classes = session.run(None, {"image": np.asarray(image)})
            assert np.abs(found - v1_predictions[photo.name]).max() <= 1e-3
            assert found.argmax() == v1_predictions[photo.name].argmax()
            assert list(classes) == list(BEARS)


@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
def test_the_answers_are_those_of_fastai_v2s_predict(
    method: str, make_learner: Callable[..., Any], vision: Any
) -> None:
    learner = make_learner("resnet18", vision.Resize(224, method=method))
    path = Path(learner.save("stage-2"))
    network = fitted(find_graph(arrays := read_checkpoint(path).arrays, "resnet18"), arrays)
    session = ort.InferenceSession(onnx_model(network, named(method=method), BEARS))
    for photo in TELLING:
        with learner.no_bar():
            expected = learner.predict(vision.PILImage.create(photo))[2].numpy()
        (found,) = session.run(["probabilities"], {"image": np.asarray(decode(photo.read_bytes(), "ignore"))})
        assert np.abs(found - expected).max() <= 1e-3
        assert found.argmax() == expected.argmax()


def test_several_right_classes_get_probabilities_of_their_own() -> None:
    network = bears()
    (expected,) = GraphEngine(network, multi_label=True).run([named()(PHOTO)])
    model = onnx_model(network, named(), BEARS, multi_label=True)
    assert np.abs(answer(model, PHOTO) - expected.probabilities).max() <= 1e-6


def test_half_the_bytes_change_probabilities_by_less_than_a_hundredth() -> None:
    network = untrained(next(g for g in shipped_graphs() if g.architecture == "resnet18"))
    whole, half = (onnx_model(network, named(), BEARS, half=half) for half in (False, True))
    assert len(half) < 0.52 * len(whole)
    assert np.abs(answer(whole, PHOTO) - answer(half, PHOTO)).max() < 0.01


def test_a_network_of_gray_pictures_answers_as_the_server_does() -> None:
    preprocess = Preprocess(named().steps, (0.5,), (0.25,), "L")
    network = bears()
    (expected,) = GraphEngine(network).run([preprocess(PHOTO)])
    assert (
        np.abs(answer(onnx_model(network, preprocess, BEARS), PHOTO) - expected.probabilities).max() <= 1e-5
    )


def test_writing_needs_neither_torch_nor_onnx() -> None:
    source = Path(importlib.import_module("app.exporting").__file__ or "").parent
    for module in source.glob("*.py"):
        assert "import onnx\n" not in module.read_text()

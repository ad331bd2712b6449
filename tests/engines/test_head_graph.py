"""The head that ONNX Runtime computes against the modules it is read from."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from app.engines.head import Head, read_head
from app.engines.head_graph import POOLED, SCORES, head_graph
from app.engines.sessions import bound_session
from tests.engines.test_head import CHANNELS, VARIANTS, arrays_of, feature_map, spread


def computed(head: Head, features: torch.Tensor, multi_label: bool = False) -> list[np.ndarray]:
    """The pooled features and the probabilities, behind a body that changes nothing."""
    shape = ["batch", CHANNELS, *(["height", "width"] if features.ndim == 4 else [])]
    pixels, output = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("pixels", "features")
    )
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["pixels"], ["features"])], "body", [pixels], [output]
    )
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(body, opset_imports=[opset], ir_version=10).SerializeToString()
    continuation, weights = head_graph(head, multi_label)
    session = bound_session(model + continuation, weights)
    return session.run([POOLED, SCORES], {"pixels": features.numpy()})  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_head_of_fastai_v2_gives_the_same_probabilities_in_onnx_runtime(
    vision: Any, variant: dict[str, Any]
) -> None:
    module = spread(vision.create_head(CHANNELS, 5, **variant))
    features = feature_map(pooled=variant.get("pool") is False)
    head = read_head(arrays_of(module), CHANNELS)
    with torch.no_grad():
        logits = module(features)
    for multi_label, expected in ((False, logits.softmax(1)), (True, logits.sigmoid())):
        pooled, probabilities = computed(head, features, multi_label)
        np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled, head.pooled(features.numpy()), rtol=1e-5, atol=1e-5)


class Library(torch.nn.Module):
    """A head of modules with the names that a library gives them, pooled where `grid` stands."""

    def __init__(self, modules: dict[str, torch.nn.Module], steps: list[Any]) -> None:
        super().__init__()
        self.classifier = torch.nn.ModuleDict(modules)
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = self.classifier[step](x) if isinstance(step, str) else step(x)
        return x


def average(grid: int) -> Any:
    return lambda x: torch.nn.functional.adaptive_avg_pool2d(x, grid).flatten(1)


nn = torch.nn
LIBRARIES: dict[str, tuple[dict[str, nn.Module], list[Any], list[str]]] = {
    "VGG": (
        {"0": nn.Linear(CHANNELS * 9, 16), "3": nn.Linear(16, 5)},
        [average(3), "0", nn.ReLU(), "3"],
        ["average 3", "linear classifier.0", "relu", "linear classifier.3"],
    ),
    "SqueezeNet": (
        {"1": nn.Conv2d(CHANNELS, 5, 1)},
        ["1", nn.ReLU(), average(1)],
        ["linear classifier.1", "relu", "average 1"],
    ),
    "MobileNetV3": (
        {"0": nn.Linear(CHANNELS, 16), "3": nn.Linear(16, 5)},
        [average(1), "0", nn.Hardswish(), "3"],
        ["average 1", "linear classifier.0", "hardswish", "linear classifier.3"],
    ),
    "ConvNeXt": (
        {"0": nn.LayerNorm(CHANNELS, eps=1e-6), "2": nn.Linear(CHANNELS, 5)},
        [average(1), "0", "2"],
        ["average 1", "norm classifier.0", "linear classifier.2"],
    ),
    "DenseNet": (
        {"2": nn.Linear(CHANNELS, 5)},
        [nn.ReLU(), average(1), "2"],
        ["relu", "average 1", "linear classifier.2"],
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_heads_of_the_libraries_give_the_same_probabilities_in_onnx_runtime(name: str) -> None:
    modules, steps, described = LIBRARIES[name]
    module = spread(Library(modules, steps))
    arrays = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    _, probabilities = computed(read_head(arrays, CHANNELS, described), feature_map())
    with torch.no_grad():
        expected = module(feature_map()).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-5)


def test_the_logits_of_a_whole_network_are_its_features_and_its_answer() -> None:
    features = feature_map(pooled=True)
    pooled, probabilities = computed(read_head({}, CHANNELS, ["whole"]), features)
    assert (pooled == features.numpy()).all()
    np.testing.assert_allclose(probabilities, features.softmax(1).numpy(), rtol=1e-5)

"""Heads that people put on: the same answers as torch, or one sentence that asks for the activation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.checkpoints.reader import read_checkpoint
from app.engines.chain import ACTIVATIONS
from app.engines.contract import Network
from app.engines.head import softmax
from app.engines.onnx_runtime import GraphEngine
from app.errors import CheckpointError
from app.graphs.bodies import create_body
from app.serving.recognize import recognize

CLASSES = {
    "none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "hardswish": nn.Hardswish, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip


def trained(model: nn.Module) -> nn.Module:
    """The same with statistics in its BatchNorms, and outputs that differ."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 96, 96))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(3)
    return model.eval()


def read(value: Any, folder: Path, activation: str = "auto") -> Network:
    torch.save(value, folder / "stage-2.pth")
    network = recognize(read_checkpoint(folder / "stage-2.pth"), activation=activation)
    assert isinstance(network, Network)
    return network


def assert_answers_alike(network: Network, model: nn.Module) -> None:
    pixels = torch.rand(2, 3, 96, 96)
    outputs = GraphEngine(network).run(list(pixels.numpy()))
    found = np.stack([output.probabilities for output in outputs])
    pooled = np.stack([output.features for output in outputs])
    np.testing.assert_allclose(softmax(network.head.logits(pooled)), found, atol=1e-5)  # of the heat maps
    with torch.no_grad():
        scores = model(pixels)
    if scores.shape[1] == 1:
        expected = torch.cat([1 - scores.sigmoid(), scores.sigmoid()], 1)
    else:
        expected = scores.softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert np.ptp(found) > 0.1


def resnet_with(fc: nn.Module) -> nn.Module:
    from torchvision.models import resnet18

    model = resnet18()
    model.fc = fc
    return model


def named(activation: nn.Module) -> nn.Module:
    parts = {"fc1": nn.Linear(512, 16), "act": activation, "drop": nn.Dropout(), "output": nn.Linear(16, 3)}
    head = nn.Sequential()
    for name, part in parts.items():
        head.add_module(name, part)
    return head


HEADS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "numbered": lambda act: nn.Sequential(nn.Linear(512, 16), act, nn.Dropout(), nn.Linear(16, 3)),
    "named": named,
    "BatchNorm before": lambda act: nn.Sequential(
        nn.Linear(512, 16), nn.BatchNorm1d(16), act, nn.Dropout(), nn.Linear(16, 3)
    ),
    "BatchNorm behind": lambda act: nn.Sequential(
        nn.Linear(512, 16), act, nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3)
    ),
    "LayerNorm": lambda act: nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 16), act, nn.Linear(16, 3)),
    "three layers": lambda act: nn.Sequential(
        nn.Dropout(), nn.Linear(512, 32), act, nn.Linear(32, 16), act, nn.Linear(16, 3), nn.LogSoftmax(1)
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_activation_of_weights_is_asked_for_and_of_a_model_is_read(
    head: str, tmp_path: Path, vision: Any
) -> None:
    model = trained(resnet_with(HEADS[head](nn.GELU())))
    expected = (
        "weights do not tell which activation is between them: set head_activation to one of none, relu, gelu"
    )
    with pytest.raises(CheckpointError, match=expected):
        read(model.state_dict(), tmp_path)
    assert_answers_alike(read(model.state_dict(), tmp_path, "gelu"), model)
    assert_answers_alike(read(model, tmp_path), model)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_computed_as_torch_does(activation: str, tmp_path: Path, vision: Any) -> None:
    model = trained(resnet_with(HEADS["numbered"](CLASSES[activation]())))
    network = read(model.state_dict(), tmp_path, activation)
    assert_answers_alike(network, model)
    pooled = np.random.default_rng(0).standard_normal((1, 512), np.float32)
    head = model.fc
    assert isinstance(head, nn.Module)
    x = torch.from_numpy(pooled).requires_grad_()
    head(x)[0, 1].backward()
    assert x.grad is not None
    np.testing.assert_allclose(network.head.gradient(pooled, 1), x.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_a_norm_divides_by_torch_s_epsilon_or_by_that_of_an_export(
    norm: Any, epsilon: float, tmp_path: Path, vision: Any
) -> None:
    model = trained(resnet_with(nn.Sequential(norm(512, eps=epsilon), nn.Linear(512, 3))))
    faint = 1e-3 * torch.randn(2, 512)  # whose variance is below either epsilon
    if norm is nn.BatchNorm1d:
        model.fc[0].running_var.fill_(1e-6)  # type: ignore[index, union-attr]
    with torch.no_grad():
        expected = model.fc(faint).numpy()  # type: ignore[operator]
    saved = [model] if epsilon != 1e-5 else [model, model.state_dict()]
    for each in saved:
        found = read(each, tmp_path).head.logits(faint.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("activation", [nn.GELU("tanh"), nn.LeakyReLU(0.2)])
def test_an_activation_with_other_options_is_not_taken_for_the_usual_one(
    activation: nn.Module, tmp_path: Path, vision: Any
) -> None:
    with pytest.raises(CheckpointError, match="with other options than torch's defaults"):
        read(trained(resnet_with(HEADS["numbered"](activation))), tmp_path)


def others(name: str) -> nn.Module:
    import torchvision.models as models

    model: Any = getattr(models, name)()
    if name == "densenet121":
        model.classifier = nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 3))
    elif name == "vgg16":
        model.classifier[6] = nn.Sequential(nn.Linear(4096, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
    elif name == "mobilenet_v3_small":
        model.classifier[3] = nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 3))
    elif name == "efficientnet_b0":
        model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 16), nn.ReLU(), nn.Linear(16, 3))
    elif name == "convnext_tiny":
        model.classifier[2] = nn.Sequential(nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 3))
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name", ["densenet121", "vgg16", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]
)
def test_a_chain_in_place_of_a_library_s_layer_is_read(name: str, tmp_path: Path, vision: Any) -> None:
    model = trained(others(name))
    assert_answers_alike(read(model.state_dict(), tmp_path, "relu"), model)


def test_one_output_is_two_classes(tmp_path: Path, vision: Any) -> None:
    model = trained(resnet_with(nn.Linear(512, 1)))
    network = read(model.state_dict(), tmp_path)
    assert (network.outputs, network.binary) == (2, True)
    assert_answers_alike(network, model)


class Wrapper(nn.Module):
    """A body in an attribute, and a head beside it, as in many a training script."""

    def __init__(self, body: str, head: str) -> None:
        super().__init__()
        setattr(self, body, resnet_with(nn.Identity()))
        setattr(self, head, nn.Linear(512, 3))
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.names = body, head

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        body, head = self.names
        return getattr(self, head)(getattr(self, body)(pixels))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("body", "head"), [("backbone", "fc"), ("encoder", "classifier"), ("model", "head")])
def test_a_head_beside_its_body_is_found(body: str, head: str, tmp_path: Path, vision: Any) -> None:
    model = trained(Wrapper(body, head))
    assert_answers_alike(read({"state_dict": model.state_dict(), "epoch": 3}, tmp_path), model)


def test_a_fastai_head_without_batch_norm_asks_for_its_activation(tmp_path: Path, vision: Any) -> None:
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 16), nn.GELU(), nn.Linear(16, 3)
    )
    model = trained(nn.Sequential(create_body("resnet18"), head))
    with pytest.raises(CheckpointError, match="set head_activation to one of"):
        read(model.state_dict(), tmp_path)
    assert_answers_alike(read(model.state_dict(), tmp_path, "gelu"), model)
    assert_answers_alike(read(model, tmp_path), model)

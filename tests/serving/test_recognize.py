"""Which network a file holds, where names and shapes alone do not tell: by the modules of real libraries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.checkpoints.reader import read_checkpoint
from app.engines.contract import Network
from app.engines.onnx_runtime import GraphEngine
from app.errors import ArchitectureUnknown
from app.serving.recognize import recognize


def recognized(model: torch.nn.Module, path: Path, architecture: str = "") -> Network:
    """The network that the server recognizes in a file of this model or of its state dict."""
    torch.save(model, path)
    network = recognize(read_checkpoint(path), architecture)
    assert isinstance(network, Network)
    return network


def assert_same_answer(network: Network, model: torch.nn.Module) -> None:
    pixels = np.random.default_rng(0).standard_normal((1, 3, 96, 128), np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(pixels)).softmax(1).numpy()
    answer = GraphEngine(network).run(list(pixels))[0]
    np.testing.assert_allclose(answer.probabilities, expected[0], atol=1e-3)


TWINS = ["efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_lite0"]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("head", ["fastai", "timm"])
def test_twins_are_told_apart_by_their_modules_and_asked_for_in_a_state_dict(
    name: str, head: str, vision: Any, tmp_path: Path
) -> None:
    import timm

    torch.manual_seed(0)
    if head == "timm":
        model = timm.create_model(name, num_classes=3)
    else:
        model, _ = vision.create_timm_model(name, 3, pretrained=False)
    network = recognized(model, tmp_path / "model.pth")
    assert network.architecture.removeprefix("timm.") == name
    assert_same_answer(network, model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    weights = read_checkpoint(tmp_path / "weights.pth")
    with pytest.raises(ArchitectureUnknown, match="alike: say in the setting architecture which"):
        recognize(weights)
    assert recognize(weights, name).architecture == network.architecture


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("transformed", [False, True])
def test_a_network_that_normalizes_its_input_once_more_is_told_by_its_module(
    name: str, transformed: bool, vision: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = getattr(vision.models, name)(num_classes=3, init_weights=False, transform_input=transformed)
    network = recognized(model.eval(), tmp_path / "model.pth")
    assert network.architecture == (f"{name}.transform_input" if transformed else name)
    assert_same_answer(network, model)


def test_a_whole_xresnet_of_fastai_is_recognized(vision: Any, tmp_path: Path) -> None:
    model = vision.xresnet18(n_out=4)
    network = recognized(model, tmp_path / "model.pth")
    assert (network.architecture, network.outputs) == ("xresnet18", 4)
    assert_same_answer(network, model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert recognize(read_checkpoint(tmp_path / "weights.pth")).architecture == "xresnet18"


def test_a_variant_is_not_taken_for_the_usual_network(vision: Any, tmp_path: Path) -> None:
    import timm

    variants = {
        "Mish in place of ReLU": vision.xresnet18(n_out=4, act_cls=vision.Mish),
        "AvgPool2d 2x2, stride 2x2, expected 0": timm.create_model("resnetaa50", num_classes=4),
        "BlurPool2d": timm.create_model("resnetblur50", num_classes=4),
    }
    for cause, model in variants.items():
        with pytest.raises(ArchitectureUnknown, match=f"but not its layers: it has .*{cause}"):
            recognized(model, tmp_path / "model.pth")


def test_the_setting_of_a_variant_is_not_overruled_by_a_state_dict(vision: Any, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet50", num_classes=3).state_dict(), tmp_path / "weights.pth")
    checkpoint = read_checkpoint(tmp_path / "weights.pth")
    for architecture in ("", "resnet50", "resnet50.a1_in1k"):
        assert recognize(checkpoint, architecture).architecture == "resnet50"
    with pytest.raises(ArchitectureUnknown, match="If you trained resnet50, set architecture to that"):
        recognize(checkpoint, "resnetblur50")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224_in21k", "deit_tiny_patch16_224"])
def test_another_name_of_the_same_network_is_understood(name: str, vision: Any, tmp_path: Path) -> None:
    import timm

    model = timm.create_model(name, num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    checkpoint = read_checkpoint(tmp_path / "weights.pth")
    assert recognize(checkpoint).architecture == "vit_tiny_patch16_224"
    network = recognize(checkpoint, name)
    assert isinstance(network, Network)
    assert network.architecture == name  # its library may show it other statistics
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).softmax(1).numpy()
    np.testing.assert_allclose(
        GraphEngine(network).run(list(pixels))[0].probabilities, expected[0], atol=1e-3
    )

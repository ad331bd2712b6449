"""Networks that torch saved with their code: the same weights as torch's, and the code is never read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.checkpoints.reader import read_checkpoint
from app.errors import ArchitectureUnknown, CheckpointError
from app.serving.recognize import recognize


@pytest.fixture(scope="module")
def model(vision: Any) -> torch.nn.Module:
    torch.manual_seed(5)
    return vision.models.resnet18(num_classes=3).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["traced", "scripted", "exported"])
def test_an_archive_has_the_weights_of_its_network(way: str, model: torch.nn.Module, tmp_path: Path) -> None:
    path, pixels = tmp_path / "model.pt", torch.rand(1, 3, 64, 64)
    if way == "exported":
        torch.export.save(torch.export.export(model, (pixels,)), path)
    else:
        torch.jit.save(torch.jit.trace(model, pixels) if way == "traced" else torch.jit.script(model), path)
    checkpoint = read_checkpoint(path)
    state = model.state_dict()
    assert set(checkpoint.arrays) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], tensor.numpy())
    network = recognize(checkpoint)
    assert (network.architecture, network.outputs) == ("resnet18", 3)
    assert checkpoint.unexpected == ()


def test_the_activation_in_a_script_is_not_taken_for_another(vision: Any, tmp_path: Path) -> None:
    model = vision.models.resnet18(num_classes=3).eval()
    model.relu = torch.nn.GELU()
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    with pytest.raises(ArchitectureUnknown, match="but not its layers: it has GELU"):
        recognize(read_checkpoint(tmp_path / "model.pt"))


def test_a_frozen_script_is_named(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "model.pt")
    assert str(caught.value) == (
        "The file is a frozen TorchScript archive, which holds no names of weights. Deploy the file of "
        "torch.save(model.state_dict(), 'model.pth')."
    )


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_half_an_archive_is_cut_short(part: float, model: torch.nn.Module, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(model), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"The file is cut short: it has .* bytes"):
        read_checkpoint(tmp_path / "model.pt")

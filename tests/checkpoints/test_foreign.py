"""Files in a form that is not read: each sentence says what happened to it, and the remedy helps."""

import base64
import bz2
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from app.checkpoints.reader import read_checkpoint
from app.errors import CheckpointError
from app.serving.recognize import recognize

EXPECTED = ", but a checkpoint such as learn.save('stage-2') writes was expected: "
SAVE_AGAIN = "save the weights with learn.save('stage-2', with_opt=False) and deploy that file."


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 3))


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def packed() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("bears/readme.txt", "bears/stage-2.pth"):
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def pruned() -> dict[str, Any]:
    from torch.nn.utils import prune

    model = network()
    prune.l1_unstructured(model[0], "weight", 0.3)  # type: ignore[index, no-untyped-call]
    return model.state_dict()


def normed() -> dict[str, Any]:
    model = network()
    torch.nn.utils.parametrizations.weight_norm(model[3])  # type: ignore[index]
    return model.state_dict()


def of_words() -> dict[str, Any]:
    parts = {"embedding": nn.Embedding(9, 4), "conv": nn.Conv2d(1, 2, (3, 4)), "fc": nn.Linear(2, 2)}
    return nn.ModuleDict(parts).state_dict()


MANGLED = (
    "The file was changed on its way by a program that took it for text: its line ends or its bytes are "
    "replaced. Copy it again, in binary mode."
)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed tar": (
        packed,
        "The file is a tar archive of bears/readme.txt, bears/stage-2.pth"
        + EXPECTED
        + "unpack it and deploy "
        "bears/stage-2.pth.",
    ),
    "bzip2": (
        lambda: bz2.compress(b"x"),
        "The file is a bzip2 archive" + EXPECTED + "unpack it and deploy the file inside.",
    ),
    "base64": (
        lambda: base64.b64encode(saved(network().state_dict())),
        "The file is a zip file in base64" + EXPECTED + "decode it, and deploy the result.",
    ),
    "line ends": (lambda: saved(nn.Linear(300, 300).state_dict()).replace(b"\n", b"\r\n"), MANGLED),
    "UTF-8": (lambda: saved(nn.Linear(99, 99).state_dict()).decode("utf8", "replace").encode(), MANGLED),
    "cut pickle": (
        lambda: saved(network().state_dict(), _use_new_zipfile_serialization=False)[:600],
        "The file is cut short or damaged: it ends in the middle of its list of objects, after 600 bytes. "
        "Download or upload it again.",
    ),
    "OpenVINO": (
        lambda: b'<?xml version="1.0"?>\n<net name="model" version="11">',
        "The file is a network of OpenVINO" + EXPECTED + "deploy the network that it was converted from.",
    ),
    "numpy": (
        lambda: saved({"conv1.weight": np.zeros(3)}),
        "The file holds numpy arrays in place of torch's tensors (its entries: conv1.weight)"
        + EXPECTED
        + SAVE_AGAIN,
    ),
    "texts": (
        lambda: saved(["cat", "dog"]),
        "The file holds a list of 2 texts (cat, dog)" + EXPECTED + SAVE_AGAIN,
    ),
    "sparse": (
        lambda: saved({"w": torch.eye(3).to_sparse()}),
        "The file holds sparse tensors, which are not read: save them dense, with tensor.to_dense().",
    ),
    "8 bits": (
        lambda: safetensors.torch.save({"w": torch.zeros(3, 3).to(torch.float8_e4m3fn)}),
        "The file holds numbers of the type F8_E4M3, which are not read: save them in float32.",
    ),
    "transformers": (
        lambda: b"\x80\x02ctransformers.models.vit.modeling_vit\nViTForImageClassification\n)R.",
        "The file holds objects of Hugging Face's transformers: save the network with "
        "model.save_pretrained('folder'), and deploy model.safetensors from there.",
    ),
    "pruned": (
        lambda: saved(pruned()),
        "The file keeps weights in parts that torch joins on each call (0.weight_orig, 0.weight_mask), as "
        "for pruning or norms of weights. Join them before you save, with torch.nn.utils.prune.remove, "
        "remove_spectral_norm, or parametrize.remove_parametrizations.",
    ),
    "weight norm": (
        lambda: saved(normed()),
        "The file keeps weights in parts that torch joins on each call (3.parametrizations.weight.original0, "
        "3.parametrizations.weight.original1), as for pruning or norms of weights. Join them before you "
        "save, with torch.nn.utils.prune.remove, remove_spectral_norm, or "
        "parametrize.remove_parametrizations.",
    ),
    "embeddings": (
        lambda: saved({"a.jpg": torch.zeros(512), "b.jpg": torch.zeros(512)}),
        "The file holds rows of numbers (a.jpg of (512,), b.jpg of (512,)), not the weights of a network. "
        "Deploy the file of learn.save('stage-2').",
    ),
    "words": (
        lambda: saved(of_words()),
        "The file is a network with embeddings of words, not a classifier of photos (it has "
        "embedding.weight): it takes texts. Use it in Python, with the library that trained it.",
    ),
    "a generator": (
        lambda: saved({"generator": nn.Conv2d(3, 3, 3).state_dict(), "critic": {"fc.weight": torch.eye(3)}}),
        "The file is a generative network (a GAN), not a classifier of photos (it has generator.weight, "
        "generator.bias): it draws pictures. Use it in Python, with the library that trained it.",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    make, expected = FILES[name]
    path = tmp_path / "stage-2.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError) as caught:
        recognize(read_checkpoint(path))
    assert str(caught.value) == expected


def test_a_network_in_parts_and_an_averaged_one_are_served(tmp_path: Path, vision: Any) -> None:
    model = vision.models.resnet18(num_classes=3)
    state = model.state_dict()
    head = {name.removeprefix("fc."): tensor for name, tensor in state.items() if name.startswith("fc.")}
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    for content in ({"backbone": body, "head": head, "epoch": 3}, averaged):
        (tmp_path / "stage-2.pth").write_bytes(saved(content))
        found = recognize(read_checkpoint(tmp_path / "stage-2.pth"))
        assert (found.architecture, found.outputs) == ("resnet18", 3)

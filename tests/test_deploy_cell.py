"""The notebook cell: run in a clean process with a really trained learner; its three files are served."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import requests
from PIL import Image

from app.checkpoints.reader import read_checkpoint
from app.serving.pixels import choose_pixels
from app.serving.predictor import Prediction
from app.serving.recognize import recognize
from app.settings import Settings
from app.settings_file import load_settings
from tests.conftest import DATA, ROOT, SECONDS, ServerProcess, open_predictor

pytestmark = pytest.mark.torch
# What stands above the cell in a notebook. The learner is trained for real, if not for long.
NOTEBOOK = """
import sys; sys.path.insert(0, {root!r})
from app.graphs.bodies import import_fastai; import_fastai()  # declares torchvision's operators
from fastai.vision.all import *
set_seed(3)
photos = sorted(Path({photos!r}).iterdir())[:36]
labels = ["teddy" if i % 2 else "bear" for i in range(len(photos))]
{data}
learn = vision_learner(dls, resnet18, pretrained=False, {options})
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
"""
PLAIN = "dls = ImageDataLoaders.from_lists('.', photos, labels, bs=8, num_workers=0, {})"
NOTEBOOKS = {
    "crop": (PLAIN.format("item_tfms=Resize(128), batch_tfms=Normalize.from_stats(*imagenet_stats)"), ""),
    "squish, not normalized": (
        PLAIN.format("item_tfms=Resize((96, 128), method='squish')"),
        "normalize=False",
    ),
    "padded with zeros": (PLAIN.format("item_tfms=Resize(128, method='pad', pad_mode='zeros')"), ""),
    "random resized crop": (
        PLAIN.format("item_tfms=RandomResizedCrop(128, val_xtra=0.3), batch_tfms=aug_transforms()"),
        "",
    ),
    "presized": (PLAIN.format("item_tfms=Resize(200), batch_tfms=aug_transforms(size=128)"), ""),
    "fastbook's": (
        PLAIN.format("item_tfms=Resize(200), batch_tfms=aug_transforms(size=128, min_scale=0.75)"),
        "",
    ),
    "bicubic, three in a row, raw scores": (
        PLAIN.format(
            "item_tfms=[FlipItem(), Resize((160, 200), resamples=(Image.BICUBIC, 0)), RandomCrop(128)], "
            "batch_tfms=[*aug_transforms(size=96, mode='nearest', align_corners=False), Normalize()]"
        ),
        "loss_func=nn.CrossEntropyLoss()",
    ),
    "gray": (
        "block = DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_x=lambda i: photos[i], "
        "get_y=lambda i: labels[i], item_tfms=Resize(128))\n"
        "dls = block.dataloaders(range(len(photos)), bs=8, num_workers=0)",
        "n_in=1",
    ),
    "several labels": (
        "block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), get_x=lambda i: photos[i], "
        "get_y=lambda i: [labels[i], 'odd'] if i % 3 else [labels[i]], item_tfms=Resize(128), "
        "batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)])\n"
        "dls = block.dataloaders(range(len(photos)), bs=8, num_workers=0)",
        "metrics=accuracy_multi",
    ),
}


def run_cell(folder: Path, data: str, options: str) -> "subprocess.CompletedProcess[str]":
    notebook = NOTEBOOK.format(root=str(ROOT), photos=str(DATA / "images"), data=data, options=options)
    cell = (ROOT / "notebook" / "deploy_cell.py").read_text()
    return subprocess.run([sys.executable, "-c", notebook + cell], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_files_of_the_cell_are_served_and_agree_with_the_notebook(
    name: str, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    ended = run_cell(tmp_path, *NOTEBOOKS[name])
    assert ended.returncode == 0, ended.stderr
    assert 'model_url = "https://..."\nproof_url = "https://..."' in ended.stdout
    server = start_server("--settings", str(tmp_path / "settings.toml"))
    server.wait_for("the proof agrees: 7 photos")
    server.wait_for("ready after")
    proof = requests.get(f"{server.url}/model", timeout=SECONDS).json()["proof"]
    assert (proof["photos"], proof["flips"]) == (7, 0)
    assert proof["worst_difference"] <= 1e-3


def test_the_cell_reads_the_settings_off_the_learner(tmp_path: Path) -> None:
    assert run_cell(tmp_path, *NOTEBOOKS["presized"]).returncode == 0
    settings = load_settings(tmp_path / "settings.toml", {})
    preprocess = choose_pixels(settings, {}, recognize(read_checkpoint(tmp_path / "stage-2.pth"))).preprocess
    assert preprocess.words == ("Resize(200)", "*aug_transforms(size=128)")
    assert (settings.architecture, settings.classes, settings.exif) == (
        "resnet18",
        ("bear", "teddy"),
        "ignore",
    )
    assert settings.mean == (0, 0, 0)  # vision_learner(pretrained=False) does not normalize
    assert settings.pillow == PIL.__version__
    assert {path.name for path in Path(settings.samples).iterdir()} <= {"bear.jpg", "teddy.jpg"}


async def predict(settings: Settings, photo: bytes) -> Prediction:
    """Open the model with its proof, and predict a photo."""
    predictor = await open_predictor(settings)
    try:
        return await predictor.predict(photo)
    finally:
        await predictor.close()


def test_at_most_a_twentieth_of_the_validation_photos_is_unfamiliar(tmp_path: Path) -> None:
    ended = run_cell(tmp_path, *NOTEBOOKS["crop"])
    limit = tomllib.loads((tmp_path / "settings.toml").read_text())["unfamiliar_below"]
    assert 0 < limit < 1
    assert f"unfamiliar_below = {limit}: 0 of 7 validation photos are below" in ended.stdout
    # the server's own familiarity of each photo to a proof of the six others
    settings, proof = load_settings(tmp_path / "settings.toml", {}), tmp_path / "proof.json"
    photos = json.loads(proof.read_text())["photos"]
    lowest = 1.0
    for photo in photos:
        others = [other for other in photos if other is not photo]
        proof.write_text(json.dumps({"classes": settings.classes, "photos": others}))
        answer = asyncio.run(predict(settings, base64.b64decode(photo["photo"])))
        lowest = min(lowest, answer.familiarity or 0.0)
    assert limit == pytest.approx(lowest, abs=0.01)


def test_the_proof_of_a_gray_network_is_in_color(tmp_path: Path) -> None:
    assert run_cell(tmp_path, *NOTEBOOKS["gray"]).returncode == 0
    proof = json.loads((tmp_path / "proof.json").read_text())
    photos = [Image.open(io.BytesIO(base64.b64decode(photo["photo"]))) for photo in proof["photos"]]
    assert {photo.mode for photo in photos} == {"RGB"}
    assert any(np.ptp(np.asarray(photo), axis=2).any() for photo in photos)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (PLAIN.format("item_tfms=[Resize(128), Blackened()]"), "Blackened"),
        (
            "block = DataBlock(blocks=(TransformBlock(type_tfms=[PILImage.create, blackened], "
            "batch_tfms=IntToFloatTensor), CategoryBlock), get_x=lambda i: photos[i], "
            "get_y=lambda i: labels[i], item_tfms=Resize(128))\n"
            "dls = block.dataloaders(range(len(photos)), bs=8, num_workers=0)",
            "blackened",
        ),
    ],
    ids=["a transform", "behind PILImage.create"],
)
def test_what_cannot_be_repeated_is_named_in_the_notebook(data: str, named: str, tmp_path: Path) -> None:
    own = (
        "class Blackened(DisplayedTransform):\n    def encodes(self, x: PILImage): return blackened(x)\n"
        "def blackened(photo): return photo.point(lambda value: value // 2)\n"
    )
    ended = run_cell(tmp_path, own + data, "")
    assert f"NotImplementedError: fastai-now does not know how to repeat {named}" in ended.stderr
    assert not (tmp_path / "stage-2.pth").exists()


def test_the_cells_are_short() -> None:
    for cell in (ROOT / "notebook").glob("deploy_cell*.py"):
        assert len(cell.read_text().splitlines()) <= 95


def test_the_proof_holds_the_photos_scaled_down(tmp_path: Path) -> None:
    assert run_cell(tmp_path, *NOTEBOOKS["crop"]).returncode == 0
    proof: dict[str, Any] = json.loads((tmp_path / "proof.json").read_text())
    assert proof.keys() == {"classes", "photos"}
    assert len((tmp_path / "proof.json").read_bytes()) < 5_000_000

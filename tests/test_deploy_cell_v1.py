"""The cell for fastai v1, run by fastai 1.0.50 itself, in an environment of its own: `make .venv/fastai1`."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from app.settings import Settings
from app.settings_file import load_settings
from tests.conftest import IMAGES, ROOT
from tests.serving.test_predictor import opened

PYTHON = Path(os.environ.get("FASTAI1_PYTHON", ROOT / ".venv" / "fastai1" / "bin" / "python"))
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not PYTHON.exists(), reason="fastai v1 is not installed: make .venv/fastai1"),
]
NOTEBOOK = """
import warnings; warnings.filterwarnings("ignore")
from fastai.vision import *
np.random.seed(1); torch.manual_seed(1)
items = ImageList.from_folder("photos").split_by_rand_pct(0.3, seed=2).label_from_folder()
data = items.transform({transform}).databunch(bs=4, num_workers=0){normalized}
learn = cnn_learner(data, models.squeezenet1_1, pretrained=False)
learn.fit(1, 1e-3)
learn.path = Path(".")
learn.export()
"""
NORMALIZED = ".normalize(imagenet_stats)"
TRANSFORMS = {
    "crop": ("get_transforms(), size=64", NORMALIZED),
    "squish to a pair": ("get_transforms(), size=(64, 96)", NORMALIZED),
    "crop to a pair": ("get_transforms(), size=(64, 96), resize_method=ResizeMethod.CROP", NORMALIZED),
    "pad by reflection": ("get_transforms(), size=80, resize_method=ResizeMethod.PAD", NORMALIZED),
    "pad with zeros": (
        "get_transforms(), size=(64, 80), resize_method=ResizeMethod.PAD, padding_mode='zeros'",
        ".normalize(([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))",
    ),
    "pad with the border": (
        "get_transforms(do_flip=False), size=64, resize_method=ResizeMethod.PAD, padding_mode='border'",
        NORMALIZED,
    ),
    "a multiple": ("get_transforms(), size=70, mult=32", NORMALIZED),
    "no transforms, not normalized": ("size=64", ""),
}


def run_cell(folder: Path, transform: str, normalized: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the notebook and the cell with fastai v1, on photos that its Pillow can read."""
    for index, photo in enumerate(photo for photo in IMAGES if photo.name.startswith("a")):
        target = folder / "photos" / "ab"[index % 2] / f"{photo.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photo) as image:
            image.convert("RGB").save(target)
    notebook = NOTEBOOK.format(transform=transform, normalized=normalized)
    cell = (ROOT / "notebook" / "deploy_cell_v1.py").read_text()
    return subprocess.run(
        [str(PYTHON), "-c", notebook + cell], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_files_of_the_cell_and_of_the_export_agree_with_the_notebook(name: str, tmp_path: Path) -> None:
    ended = run_cell(tmp_path, *TRANSFORMS[name])
    assert ended.returncode == 0, ended.stderr
    assert 'model_url = "https://..."\nproof_url = "https://..."' in ended.stdout
    exported = Settings(
        model_url=str(tmp_path / "export.pkl"), proof_url=str(tmp_path / "proof.json"), exif="ignore"
    )
    for settings in (load_settings(tmp_path / "settings.toml", {}), exported):
        proof = opened(settings).card.proof  # which refuses to open where they differ
        assert proof is not None
        assert (proof.photos > 3, proof.flips) == (True, 0)
        assert proof.worst_difference <= 1e-3
    assert {photo.name for photo in (tmp_path / "samples").iterdir()} <= {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        ("([], [rotate(degrees=10)]), size=64", "how to repeat rotate at validation"),
        ("get_transforms(), size=64, mode='nearest'", "how to repeat mode='nearest'"),
    ],
)
def test_what_cannot_be_repeated_is_named_in_the_notebook(transform: str, named: str, tmp_path: Path) -> None:
    assert f"NotImplementedError: fastai-now does not know {named}" in run_cell(tmp_path, transform).stderr
    assert not (tmp_path / "stage-2.pth").exists()

"""The folder of an export: the model, its description, the proof, and the programs."""

import hashlib
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from app import __version__
from app.engines.contract import Network
from app.engines.photo_file import CLASSES, IMAGE, PROBABILITIES, SETTINGS, Inside
from app.errors import ExportError
from app.exporting.model import onnx_model
from app.exporting.proof import TOLERANCE, answers_of, check_answers, write_proof
from app.serving.model import Opened
from app.serving.resolve import Recipe

PROGRAMS: Final = Path(__file__).parent / "programs"
HIDDEN: Final = ("npmrc", "clang-format", "clang-tidy")
MODEL, MANIFEST, README, PROOF = "model.onnx", "manifest.json", "README.md", "proof"
ORT: Final = "1.17"  # the oldest ONNX Runtime with operators and format of the model


class Written(Struct, frozen=True):
    """The size of the model, and how far its answers are from the server's."""

    model_bytes: int
    photos: int
    worst_difference: float


def write_folder(folder: Path, opened: Opened, *, targets: Sequence[str], half: bool = False) -> Written:
    """Write the export of an opened model, whose engine computes in float32.

    Raises ExportError if the folder holds other files, if the network has no graph of ours, or if the model's
    answers are not the server's.
    """
    _check_folder(folder)
    if not isinstance(opened.network, Network):
        raise ExportError(
            "The model is an ONNX file with its own weights already; an export needs a checkpoint. Use the "
            "file as it is, and repeat the preprocessing that `python -m app inspect` prints."
        )
    recipe = opened.recipe
    if unwritable := [name for name in recipe.classes if not name.isprintable()]:
        raise ExportError(f"The class {unwritable[0]!r} has a tab or a line break: give it another name.")
    answers = list(answers_of(opened))
    model = onnx_model(
        opened.network,
        recipe.preprocess,
        recipe.classes,
        multi_label=recipe.multi_label,
        half=half,
        notes=_notes(recipe),
    )
    (folder / PROOF).mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model)
    worst = check_answers(folder / MODEL, answers, half=half)
    write_proof(folder / PROOF, recipe.classes, answers)
    manifest = _manifest(opened, model, half=half)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    (folder / README).write_text(_readme(opened, targets), "utf-8")
    for target in targets:
        if target != "web" and (PROGRAMS / target).is_dir():  # which is more than a copy
            _copy_program(target, folder / target)
    return Written(len(model), len(answers), worst)


def _copy_program(target: str, folder: Path) -> None:
    """Copy a program, whose hidden files are not hidden here: deployments leave those out."""
    shutil.copytree(PROGRAMS / target, folder, dirs_exist_ok=True)
    for name in HIDDEN:
        if (folder / name).exists():
            (folder / name).replace(folder / f".{name}")


def _notes(recipe: Recipe) -> dict[str, str]:
    """Return the metadata: the classes, the orientation, and the settings that describe what is inside."""
    preprocess = recipe.preprocess
    inside = Inside(
        exif=recipe.exif,
        multi_label=recipe.multi_label,
        threshold=recipe.threshold,
        unsure_below=recipe.unsure_below,
        gray=preprocess.mode == "L",
        **preprocess.as_settings(),
    )
    texts = {SETTINGS: inside, CLASSES: recipe.classes}
    return {"exif": recipe.exif, **{key: msgspec.json.encode(each).decode() for key, each in texts.items()}}


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file; the name of a folder was expected.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ExportError(
            f"{folder} holds other files: name a folder that is new, empty or an earlier export."
        )


def _manifest(opened: Opened, model: bytes, *, half: bool) -> dict[str, Any]:
    recipe, preprocess = opened.recipe, opened.recipe.preprocess
    return {
        "classes": recipe.classes,
        "multi_label": recipe.multi_label,
        "threshold": recipe.threshold,
        "unsure_below": recipe.unsure_below,
        "exif": recipe.exif,
        "architecture": opened.network.architecture,
        "preprocess": {
            "transforms": preprocess.words,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "gray": preprocess.mode == "L",
        },
        "input": {IMAGE: "uint8 (height, width, 3 or 4): RGB, or RGB and an alpha that is dropped"},
        "output": {
            PROBABILITIES: f"float32 ({len(recipe.classes)},)",
            CLASSES: f"string ({len(recipe.classes)},)",
        },
        "weights": "float16" if half else "float32",
        "tolerance": TOLERANCE,
        "onnxruntime": f">={ORT}",
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "checkpoint_sha256": opened.source.file.sha256,
        "written_by": f"fastai-now {__version__}",
    }


def _readme(opened: Opened, targets: Sequence[str]) -> str:
    """Return the description of the folder for a developer."""
    recipe = opened.recipe
    rows = [_row(target) for target in targets if (PROGRAMS / target).is_dir()]
    return string.Template((PROGRAMS / README).read_text("utf-8")).substitute(
        architecture=opened.network.architecture,
        classes=", ".join(recipe.classes),
        count=len(recipe.classes),
        transforms=", ".join(recipe.preprocess.words) or "photos as they are",
        exif="turned upright by its EXIF orientation"
        if recipe.exif == "turn"
        else "as it is stored: EXIF is ignored",
        sums="each by itself, since several may be right" if recipe.multi_label else "their sum is 1",
        ort=ORT,
        tolerance=TOLERANCE,
        programs="\n".join(rows) + "\n" if rows else "",
    )


def _row(target: str) -> str:
    """Return the line on a program: the first one of its README."""
    title = (PROGRAMS / target / README).read_text("utf-8").splitlines()[0].removeprefix("# ")
    return f"- [{target}/]({target}/README.md): {title}"

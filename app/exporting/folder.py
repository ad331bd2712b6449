"""The folder of an export: the model, its description, the proof, and the programs."""

import hashlib
import shutil
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct
from PIL import Image

from app import __version__
from app.engines.contract import Network
from app.engines.sessions import file_session
from app.errors import ExportError
from app.exporting.model import CLASSES, PROBABILITIES, onnx_model
from app.exporting.pipeline import IMAGE
from app.photos.decode import decode, read_header
from app.serving.model import Opened
from app.types import Float32

PROGRAMS: Final = Path(__file__).parent / "programs"
SAMPLES: Final = Path(__file__).parent.parent / "samples"
MODEL, MANIFEST, README, PROOF = "model.onnx", "manifest.json", "README.md", "proof"
MAX_PHOTOS: Final = 12  # of the proof, each of which is written without compression too
TOLERANCE: Final = 0.01  # of any probability: float16 weights and other JPEG decoders need 0.004
SUFFIXES: Final = {"JPEG": ".jpg", "PNG": ".png"}  # that every decoder reads
ORT: Final = "1.17"  # the oldest ONNX Runtime with operators and format of the model


class Answer(Struct, frozen=True):
    """A photo of the proof: its file, its pixels, and the server's probabilities."""

    data: bytes
    image: Image.Image
    probabilities: Float32


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
    answers = list(_answers(opened))
    model = onnx_model(
        opened.network,
        recipe.preprocess,
        recipe.classes,
        multi_label=recipe.multi_label,
        half=half,
        notes={"exif": recipe.exif, "classes": msgspec.json.encode(recipe.classes).decode()},
    )
    (folder / PROOF).mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model)
    worst = _check_answers(folder / MODEL, answers, half=half)
    _write_proof(folder / PROOF, recipe.classes, answers)
    manifest = _manifest(opened, model, half=half)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    (folder / README).write_text(_readme(opened, targets), "utf-8")
    for target in targets:
        if (PROGRAMS / target).is_dir():
            shutil.copytree(PROGRAMS / target, folder / target, dirs_exist_ok=True)
    return Written(len(model), len(answers), worst)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file; the name of a folder was expected.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ExportError(
            f"{folder} holds other files: name a folder that is new, empty or an earlier export."
        )


def _answers(opened: Opened) -> Iterator[Answer]:
    """Yield the photos of the proof, else the samples, as the server answers them."""
    proof = opened.source.proof
    photos: Iterable[bytes] = (
        [photo.photo for photo in proof.photos]
        if proof
        else (path.read_bytes() for path in sorted(SAMPLES.iterdir()))
    )
    prepare, run = opened.proven.engine.bind(opened.recipe.preprocess)
    for data in list(photos)[:MAX_PHOTOS]:
        image = decode(data, opened.recipe.exif)
        (output,) = run([prepare(image)])
        yield Answer(data, image, output.probabilities)


def _check_answers(path: Path, answers: Sequence[Answer], *, half: bool) -> float:
    """Return the largest difference. Raises ExportError beyond the tolerance."""
    session = file_session(path)
    worst = 0.0
    for answer in answers:
        (found,) = session.run([PROBABILITIES], {IMAGE: np.asarray(answer.image)})
        worst = max(worst, float(np.abs(found - answer.probabilities).max()))
        if worst > TOLERANCE or found.argmax() != answer.probabilities.argmax():
            remedy = "export without --half" if half else "report this, with the name of the architecture"
            raise ExportError(
                f"The exported model answers a photo of the proof with other probabilities: they differ by "
                f"{worst:.4f}, and up to {TOLERANCE} was expected. {remedy[0].upper()}{remedy[1:]}."
            )
    return worst


def _write_proof(folder: Path, classes: Sequence[str], answers: Sequence[Answer]) -> None:
    """Write each photo without compression, as its own file, and a table of their probabilities."""
    rows = [["photo", *(" ".join(name.split()) for name in classes)]]
    for index, answer in enumerate(answers, 1):
        width, height = answer.image.size
        files = {".ppm": b"P6\n%d %d\n255\n" % (width, height) + answer.image.tobytes()}
        if suffix := SUFFIXES.get(read_header(answer.data).format or ""):
            files[suffix] = answer.data
        for suffix, content in files.items():
            name = f"photo-{index}{suffix}"
            (folder / name).write_bytes(content)
            rows.append([name, *(f"{each:.9g}" for each in answer.probabilities.tolist())])
    (folder / "answers.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")


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

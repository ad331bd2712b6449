"""The proof of an export: photos with the server's answers, and how far the model's are from them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from PIL import Image

from app.engines.photo_file import IMAGE, PROBABILITIES
from app.engines.sessions import file_session
from app.errors import ExportError
from app.photos.decode import decode, read_header
from app.serving.model import Opened
from app.types import Float32

SAMPLES: Final = Path(__file__).parent.parent / "samples"
MAX_PHOTOS: Final = 12  # each of which is written without compression too
TOLERANCE: Final = 0.01  # of any probability: float16 weights and other JPEG decoders need 0.004
SUFFIXES: Final = {"JPEG": ".jpg", "PNG": ".png"}  # that every decoder reads


class Answer(Struct, frozen=True):
    """A photo of the proof: its file, its pixels, and the server's probabilities."""

    data: bytes
    image: Image.Image
    probabilities: Float32


def answers_of(opened: Opened) -> Iterator[Answer]:
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


def check_answers(path: Path, answers: Sequence[Answer], *, half: bool) -> float:
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


def write_proof(folder: Path, classes: Sequence[str], answers: Sequence[Answer]) -> None:
    """Write each photo without compression, as its own file, and a table of their probabilities."""
    rows = [["photo", *classes]]
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

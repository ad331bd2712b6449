"""The proof: photos with the notebook's own probabilities for them, replayed through the served pipeline.

`notebook/deploy_cell.py` writes it. Where the answers differ, the likely causes are tried one by one and the
one that makes them agree is named. Knows nothing of settings files and requests.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from app.engines.contract import Bind, Output
from app.errors import ProofError, RequestError
from app.photos.decode import Exif, decode
from app.photos.transforms import IMAGENET_MEAN, IMAGENET_STD, METHODS, Preprocess

TOLERANCE: Final = 0.02  # of any probability: a notebook on a GPU computes in TF32 or float16
MAX_BYTES: Final = 50_000_000  # a dozen photos of half a megapixel have 5 MB
OTHER_SIZES: Final = (64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 300, 320, 384, 448, 460, 512)
NOT_NORMALISED: Final = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
HALF: Final = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET: Final = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class ProofPhoto(Struct, frozen=True):
    """A photo, the bytes of a picture file, and the notebook's probabilities for it, in the order of its
    classes.
    """

    name: str
    photo: bytes
    probabilities: Annotated[tuple[float, ...], Meta(min_length=2)]


class Proof(Struct, frozen=True):
    """What a notebook said: its classes in order, and some photos with its probabilities."""

    classes: tuple[str, ...]
    photos: Annotated[tuple[ProofPhoto, ...], Meta(min_length=1, max_length=1000)]


class ProofResult(Struct, frozen=True):
    """How far the served answers are from the notebook's: over all photos and classes."""

    photos: int
    worst_photo: str
    worst_difference: float
    flips: int

    @property
    def agrees(self) -> bool:
        """Whether every probability is within the tolerance and every class the same."""
        return self.worst_difference <= TOLERANCE and not self.flips


def read_proof(path: Path) -> Proof:
    """Read proof.json. Raises ProofError where it is not what the notebook cell writes."""
    if path.stat().st_size > MAX_BYTES:
        raise ProofError(f"The proof has over {MAX_BYTES:,} bytes; a dozen scaled-down photos are enough.")
    try:
        proof = msgspec.json.decode(path.read_bytes(), type=Proof)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofError(
            f"The file at proof_url is no proof.json as the notebook cell writes it: {error}."
        ) from error
    if any(len(photo.probabilities) != len(proof.classes) for photo in proof.photos):
        raise ProofError(f"The proof has photos with other than {len(proof.classes)} probabilities: damaged.")
    return proof


def prove(
    proof: Proof, classes: Sequence[str], bind: Bind, preprocess: Preprocess, exif: Exif
) -> tuple[ProofResult, list[Output]]:
    """Replay the proof through the pipeline that is served: how well it agrees, and the answers.

    Raises ProofError unless all agree: it names the worst photo and the setting that would make them agree.
    """
    if tuple(classes) != proof.classes:
        raise ProofError(
            f"The classes in the settings are {', '.join(classes)[:300]}, but the notebook's are, in this "
            f"order: classes = {msgspec.json.encode(proof.classes).decode()[:1000]}"
        )
    answers = replay(proof, bind, preprocess, exif)
    result = compare(proof, answers)
    if result.agrees:
        return result, answers
    raise ProofError(f"{_disagreement(proof, answers, result)} {_diagnosis(proof, bind, preprocess, exif)}")


def replay(proof: Proof, bind: Bind, preprocess: Preprocess, exif: Exif) -> list[Output]:
    """The answers to the photos, by the pipeline as given. Raises ProofError where a photo cannot be read."""
    prepare, run = bind(preprocess)
    answers = []
    for photo in proof.photos:
        try:
            answers += run([prepare(decode(photo.photo, exif))])
        except RequestError as error:
            raise ProofError(f"The photo {photo.name} of the proof cannot be used: {error}") from error
    return answers


def compare(proof: Proof, answers: Sequence[Output]) -> ProofResult:
    """How far answers to the photos, in their order, are from the notebook's."""
    expected = np.array([photo.probabilities for photo in proof.photos], np.float32)
    found = np.stack([answer.probabilities for answer in answers])
    differences = np.abs(found - expected).max(axis=1)
    flips = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    worst = int(differences.argmax())
    return ProofResult(len(proof.photos), proof.photos[worst].name, float(differences[worst]), flips)


def _disagreement(proof: Proof, answers: Sequence[Output], result: ProofResult) -> str:
    worst = next(i for i, photo in enumerate(proof.photos) if photo.name == result.worst_photo)
    expected = np.array(proof.photos[worst].probabilities)
    found = answers[worst].probabilities
    theirs, ours = int(expected.argmax()), int(found.argmax())
    return (
        f"The proof fails: {result.flips} of {result.photos} photos get another class than in the notebook. "
        f"The worst is {result.worst_photo}: there {proof.classes[theirs]} with {expected[theirs]:.3f}, here "
        f"{proof.classes[ours]} with {found[ours]:.3f}."
    )


def _diagnosis(proof: Proof, bind: Bind, preprocess: Preprocess, exif: Exif) -> str:
    """The sentence that names the one setting whose change makes all agree, if there is one."""
    for setting, changed, turned in _suspects(preprocess, exif):
        if compare(proof, replay(proof, bind, changed, turned)).agrees:
            return f"With {setting} all agree: say so in the settings."
    if order := _order(proof, replay(proof, bind, preprocess, exif)):
        return f"With the classes in another order all agree: the checkpoint was trained with {order}."
    return (
        "No single setting makes them agree (tried: exif, pipeline, resize_method, mean and std, image_size, "
        "the order of the classes): is this checkpoint of the training that the proof is of? Run the cell "
        "again."
    )


def _suspects(preprocess: Preprocess, exif: Exif) -> Iterator[tuple[str, Preprocess, Exif]]:
    """The usual causes, as settings, each with the pipeline that it makes."""
    other: Exif = "ignore" if exif == "turn" else "turn"
    yield f'exif = "{other}"', preprocess, other
    for pipeline in ("resize", "random_resized_crop", "presize", "fastai1"):
        for method in METHODS.get(pipeline, ("crop", "squish", "pad")):
            setting = f'pipeline = "{pipeline}" and resize_method = "{method}"'
            yield setting, replace(preprocess, pipeline=pipeline, method=method), exif
    for statistics in (NOT_NORMALISED, IMAGENET, HALF):
        setting = f"mean = {list(statistics['mean'])} and std = {list(statistics['std'])}"
        yield setting, replace(preprocess, mean=statistics["mean"], std=statistics["std"]), exif
    for size in OTHER_SIZES:
        yield f"image_size = {size}", replace(preprocess, size=(size, size)), exif


def _order(proof: Proof, answers: Sequence[Output]) -> str:
    """The classes in the order in which the answers would agree, if there is one such order."""
    expected = np.array([photo.probabilities for photo in proof.photos], np.float32)
    found = np.stack([answer.probabilities for answer in answers])
    distances = np.abs(found[:, :, None] - expected[:, None, :]).max(axis=0)  # (ours, theirs)
    nearest = distances.argmin(axis=1)
    if len(set(nearest)) < len(nearest) or distances.min(axis=1).max() > TOLERANCE:
        return ""
    return msgspec.json.encode([proof.classes[index] for index in nearest]).decode()

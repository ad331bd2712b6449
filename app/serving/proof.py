"""The proof: photos with the notebook's own probabilities for them, replayed through the served pipeline.

`notebook/deploy_cell.py` writes it. Knows nothing of settings files and requests.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from app.engines.contract import Bind, Output
from app.errors import ProofError, RequestError, plain
from app.photos.decode import Exif, decode
from app.photos.transforms import (
    Preprocess,
)

TOLERANCE: Final = 0.02  # of any probability: a notebook on a GPU computes in TF32 or float16
MAX_BYTES: Final = 50_000_000  # a dozen photos of half a megapixel have 5 MB


class ProofPhoto(Struct, frozen=True):
    """A picture file, and the notebook's probabilities for it in the order of its classes."""

    name: str
    photo: bytes
    probabilities: Annotated[tuple[float, ...], Meta(min_length=2)]


class Proof(Struct, frozen=True):
    """A notebook's classes in order, and some photos with its probabilities."""

    classes: tuple[str, ...]
    photos: Annotated[tuple[ProofPhoto, ...], Meta(min_length=1, max_length=1000)]


class ProofResult(Struct, frozen=True):
    """The differences of the served answers from the notebook's, over all photos and classes."""

    photos: int
    worst_photo: str
    worst_difference: float
    flips: int

    @property
    def agrees(self) -> bool:
        """Tell whether every probability is within the tolerance and every class the same."""
        return self.worst_difference <= TOLERANCE and not self.flips


def read_proof(path: Path) -> Proof:
    """Read proof.json. Raises ProofError unless it has the form that the notebook cell writes."""
    if path.stat().st_size > MAX_BYTES:
        raise ProofError(f"The proof has over {MAX_BYTES:,} bytes; a dozen scaled-down photos are enough.")
    try:
        proof = msgspec.json.decode(path.read_bytes(), type=Proof)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofError(
            f"The file at proof_url is not a proof.json as the notebook cell writes it: {plain(error)}."
        ) from error
    if any(len(photo.probabilities) != len(proof.classes) for photo in proof.photos):
        raise ProofError(f"The proof has photos with other than {len(proof.classes)} probabilities: damaged.")
    return proof


def check_classes(proof: Proof, classes: Sequence[str]) -> None:
    """Raise ProofError unless the classes are the notebook's, in its order."""
    if tuple(classes) != proof.classes:
        raise ProofError(
            f"The classes in the settings are {plain(', '.join(classes))}, but the notebook's are, in this "
            f"order: classes = {msgspec.json.encode(proof.classes).decode()[:1000]}"
        )


def replay(proof: Proof, bind: Bind, preprocess: Preprocess, exif: Exif) -> list[Output]:
    """The answers to the photos, by the pipeline as given. Raises ProofError where a photo cannot be read."""
    prepare, run = bind(preprocess)
    answers = []
    for photo in proof.photos:
        try:
            answers += run([prepare(decode(photo.photo, exif))])
        except RequestError as error:
            raise ProofError(f"The photo {plain(photo.name)} of the proof cannot be used: {error}") from error
    return answers


def compare(proof: Proof, answers: Sequence[Output]) -> ProofResult:
    """How far answers to the photos, in their order, are from the notebook's."""
    expected = np.array([photo.probabilities for photo in proof.photos], np.float32)
    found = np.stack([answer.probabilities for answer in answers])
    differences = np.abs(found - expected).max(axis=1)
    flips = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    worst = int(differences.argmax())
    return ProofResult(len(proof.photos), proof.photos[worst].name, float(differences[worst]), flips)


def agree(photo: ProofPhoto, answer: Output) -> bool:
    """Whether the answer to a photo is the notebook's, within the tolerance."""
    expected = np.array(photo.probabilities, np.float32)
    same = answer.probabilities.argmax() == expected.argmax()
    return bool(same and np.abs(answer.probabilities - expected).max() <= TOLERANCE)


def with_probabilities(proof: Proof, multi_label: bool) -> Proof:
    """The same proof, with probabilities where the notebook wrote the network's raw scores.

    fastai's `predict` gives raw scores with a loss that is not one of its own (learner.py:300): they are
    recognized by a number that no probability can be.
    """
    scores = np.array([photo.probabilities for photo in proof.photos], np.float64)
    if not ((scores < 0) | (scores > 1)).any():
        return proof
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    rows = 1 / (1 + np.exp(-scores)) if multi_label else exponents / exponents.sum(axis=1, keepdims=True)
    photos = (
        replace(photo, probabilities=tuple(row))
        for photo, row in zip(proof.photos, rows.tolist(), strict=True)
    )
    return replace(proof, photos=tuple(photos))


def disagreement(proof: Proof, answers: Sequence[Output], result: ProofResult) -> str:
    worst = next(i for i, photo in enumerate(proof.photos) if photo.name == result.worst_photo)
    expected = np.array(proof.photos[worst].probabilities)
    found = answers[worst].probabilities
    theirs, ours = int(expected.argmax()), int(found.argmax())
    return (
        f"The proof fails: {result.flips} of {result.photos} photos get another class than in the notebook. "
        f"The worst is {plain(result.worst_photo)}: there {plain(proof.classes[theirs])} with "
        f"{expected[theirs]:.3f}, here {plain(proof.classes[ours])} with {found[ours]:.3f}."
    )

"""How alike a photo is to those of the proof, and which of these are most alike."""

import base64
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
from msgspec import Meta, Struct

from app.engines.contract import Output
from app.photos.decode import Exif, decode
from app.photos.encode import as_jpeg
from app.serving.proof import Proof
from app.types import Float32

SIDE: Final = 192  # px, of the photos that are shown
MOST: Final = 3


class Neighbor(Struct, frozen=True):
    """A photo of the proof: the notebook's class for it, its similarity, and a JPEG as a data URL."""

    label: str
    similarity: Annotated[float, Meta(ge=-1, le=1)]
    image: str


class Familiarity:
    """The similarity of photos to the photos of the proof, by the network's features."""

    def __init__(
        self, outputs: Sequence[Output], labels: Sequence[str] = (), images: Sequence[str] = ()
    ) -> None:
        """Take the outputs for the photos; their labels and images only where they are shown."""
        self._reference_features = l2_normalize(np.stack([output.features for output in outputs]))
        self._labels = labels
        self._images = images

    def __call__(self, output: Output) -> float:
        """Return the highest cosine similarity to any proof photo, from -1 to 1."""
        return float(self._similarities(output).max())

    def nearest(self, output: Output) -> tuple[Neighbor, ...]:
        """Return the photos that are most alike, the likest first; none where they are not shown."""
        similarities = self._similarities(output)
        order = np.argsort(-similarities, kind="stable")[:MOST] if self._images else ()
        return tuple(Neighbor(self._labels[i], float(similarities[i]), self._images[i]) for i in order)

    def _similarities(self, output: Output) -> Float32:
        found: Float32 = self._reference_features @ l2_normalize(output.features)
        return np.clip(found, -1, 1)


def familiarity(outputs: Sequence[Output], proof: Proof | None, exif: Exif, show: bool) -> Familiarity | None:
    """Return the similarity to the proof's photos, None without one; `show` prepares them for the page."""
    if not outputs or proof is None:
        return None
    if not show:
        return Familiarity(outputs)
    labels = [proof.classes[int(np.argmax(photo.probabilities))] for photo in proof.photos]
    return Familiarity(outputs, labels, [_thumb(photo.photo, exif) for photo in proof.photos])


def _thumb(photo: bytes, exif: Exif) -> str:
    data = as_jpeg(decode(photo, exif), SIDE)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def l2_normalize(vectors: Float32) -> Float32:
    """Scale (..., features) vectors to length 1; zero vectors stay zero and are similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]

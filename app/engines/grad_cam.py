"""Why? The parts of a photo that speak for a class: Grad-CAM (Selvaraju et al. 2017).

Knows nothing of files or requests. The body gives the feature map, the numpy head its gradient: no torch.
"""

import base64
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from PIL import Image

from app.engines.contract import Look, Prepare
from app.engines.head import Head
from app.errors import BadOutput, BadRequest, NotExplained, plain
from app.photos.steps import Region
from app.photos.transforms import Preprocess
from app.types import Float32, Float64

OVERLAY_SIDE: Final = 256  # px of the longer side: smooth when it is stretched over a photo, and about 8 kB
LEVELS: Final = 64  # of heat in the overlay: no step is seen, and a palette keeps it small
# From the least heat to the most: red, green, blue, opacity. Brighter all the way, so that it can
# be read without telling colors apart.
COLORS: Final = (
    (48, 18, 99, 150),
    (148, 34, 112, 180),
    (228, 90, 49, 210),
    (252, 180, 60, 235),
    (252, 250, 165, 255),
)


class Explanation(Struct, frozen=True):
    """The parts of a photo that speak for `label`.

    `heatmap` has h rows of w numbers from 0 to 1, the largest is 1 unless all are 0; it covers `region` of
    the upright photo, the part that the network saw. `image` is a data URL: a PNG with the shape of the
    whole photo, to be laid over it.
    """

    label: str
    score: float
    heatmap: tuple[tuple[float, ...], ...]
    region: Region
    image: str


class Explainer:
    """Explains photos with the network that answers them."""

    def __init__(
        self,
        prepare: Prepare,
        look: Look,
        head: Head,
        preprocess: Preprocess,
        classes: Sequence[str],
    ) -> None:
        self._prepare = prepare
        self._look = look
        self._head = head
        self._preprocess = preprocess
        self._classes = classes

    def __call__(self, image: Image.Image, label: str = "") -> Explanation:
        """Explain `label` on an upright RGB image; "" is the likeliest class.

        Raises BadRequest where there is no such class, BadOutput, NotExplained.
        """
        if label and label not in self._classes:
            raise BadRequest(
                f"There is no class '{plain(label, 80)}'; there are {plain(', '.join(self._classes))}.",
                "unknown-label",
            )
        answer, features = self._look(self._prepare(image))
        if not np.isfinite(answer.probabilities).all():
            raise BadOutput("The network gave no number for this picture; another picture may do.")
        output = self._classes.index(label) if label else int(answer.probabilities.argmax())
        heat = grad_cam(self._head, features, output)
        region, _ = self._preprocess.shown(image.height, image.width)
        png = overlay(heat, region, *image.size)
        return Explanation(
            label=self._classes[output],
            score=float(answer.probabilities[output]),
            heatmap=tuple(tuple(round(float(value), 4) for value in row) for row in heat),
            region=region,
            image="data:image/png;base64," + base64.b64encode(png).decode(),
        )


def grad_cam(head: Head, features: Float32, output: int) -> Float32:
    """(C, h, w) feature map -> (h, w) heat in 0..1 for one output, by the gradient of its logit.

    A channel weighs as much as its gradient is on average (eq. 1). Whether through the mean or through the
    one place of the maximum, the gradients of a channel add up to that of its pooled number.
    Raises NotExplained.
    """
    if features.ndim != 3:
        raise NotExplained(
            "This network pools inside its body: there is no map of features left to show. "
            "POST /analyze answers as usual."
        )
    gradient = head.by_channel(head.gradient(head.pooled(features[np.newaxis]), output))[0]
    (mapped,) = head.mapped(features[np.newaxis])
    heat: Float32 = np.maximum(
        np.tensordot(gradient, mapped, axes=1), 0
    )  # 1 / (h * w) of eq. 1 cancels below
    return heat / max(float(heat.max()), float(np.finfo(np.float32).tiny))


def overlay(heat: Float32, region: Region, width: int, height: int) -> bytes:
    """(h, w) heat over its region of a photo -> a PNG with the photo's shape, clear outside the region."""
    scale = OVERLAY_SIDE / max(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    # where each pixel of the overlay lies on the heat map, from 0 to 1 inside it
    across, down = (
        ((np.arange(length) + 0.5) / length - start) / share
        for length, start, share in zip(size, region[:2], region[2:], strict=True)
    )
    inside = np.outer((down >= 0) & (down <= 1), (across >= 0) & (across <= 1))
    levels = np.rint(interpolate(interpolate(heat, down).T, across).T * (LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(np.where(inside, levels + 1, 0).astype(np.uint8), "P")
    table = interpolate(np.array(COLORS, np.float32), (np.arange(LEVELS) + 0.5) / LEVELS)
    palette = np.vstack([np.zeros((1, 4)), table]).astype(np.uint8)  # entry 0: outside
    image.putpalette(palette[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", transparency=palette[:, 3].tobytes())
    return file.getvalue()


def interpolate(rows: Float32, positions: Float64) -> Float32:
    """(n, m) rows -> (positions, m), mixed linearly; 0 is the first row's outer edge and 1 the last's."""
    places = np.clip(positions * len(rows) - 0.5, 0, len(rows) - 1)
    below = np.minimum(places.astype(int), max(len(rows) - 2, 0))
    share = (places - below)[:, np.newaxis].astype(np.float32)
    mixed: Float32 = rows[below] * (1 - share) + rows[np.minimum(below + 1, len(rows) - 1)] * share
    return mixed

"""The model card: a description of the model that is served."""

import platform
import sys

import PIL
from msgspec import Struct

from app.engines.contract import Recognized
from app.photos.transforms import Preprocess
from app.serving.precision import Precision
from app.serving.proof import ProofResult
from app.serving.prove import Proven
from app.serving.resolve import Recipe
from app.serving.source import Source
from app.types import Size


class Pixels(Struct, frozen=True):
    """How photos become the network's input: the transforms in the words of their library, then Normalize.

    `size` is (height, width) of the input, None where it is the photo's. `scalable` tells whether a photo may
    be made smaller before it is sent: its details are averaged away.
    """

    transforms: tuple[str, ...]
    size: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: bool
    scalable: bool


class ModelCard(Struct, frozen=True):
    """A description of the served model. `classes` are the names in the answers.

    `fastai` is the generation that wrote it, None if unknown.
    `activation` makes probabilities of the network's scores, also where the notebook's loss has none.
    """

    architecture: str
    classes: tuple[str, ...]
    fastai: int | None
    container: str
    engine: str
    preprocess: Pixels
    activation: str
    exif: str
    proof: ProofResult | None
    precision: Precision
    sha256: str
    bytes: int
    versions: dict[str, str]


def describe(source: Source, network: Recognized, recipe: Recipe, proven: Proven) -> ModelCard:
    """Return the card. Waits for the sha256 of the file."""
    return ModelCard(
        architecture=network.architecture,
        classes=recipe.labels,
        fastai=network.generation or None,
        container=source.checkpoint.container,
        engine=proven.engine.name,
        preprocess=_pixels(recipe.preprocess),
        activation=_activation(recipe),
        exif=recipe.exif,
        proof=proven.result,
        precision=proven.precision,
        sha256=source.file.sha256,
        bytes=source.file.path.stat().st_size,
        versions={
            "python": platform.python_version(),
            # torch's version is not a plain str
            **{name: str(sys.modules[name].__version__) for name in proven.engine.packages},
            "pillow": PIL.__version__,
        },
    )


def _pixels(preprocess: Preprocess) -> Pixels:
    return Pixels(
        transforms=preprocess.words,
        size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        gray=preprocess.mode == "L",
        scalable=preprocess.least is not None,
    )


def _activation(recipe: Recipe) -> str:
    name = "sigmoid" if recipe.multi_label else "softmax"
    if not recipe.raw_scores:
        return name
    return f"{name}, which the notebook leaves out with {recipe.raw_scores}: its predict answers raw scores"

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


class ModelCard(Struct, frozen=True):
    """A description of the served model. `fastai` is the generation that wrote it, None if unknown."""

    architecture: str
    classes: tuple[str, ...]
    fastai: int | None
    container: str
    engine: str
    preprocess: Preprocess
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
        classes=recipe.classes,
        fastai=network.generation or None,
        container=source.checkpoint.container,
        engine=proven.engine.name,
        preprocess=recipe.preprocess,
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

"""An open model: the functions that answer, the rules for an answer, and the card that describes it."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from app.engines.contract import Network, Output, Prepare, Recognized, Run
from app.engines.grad_cam import Explainer
from app.photos.decode import Exif
from app.serving.card import ModelCard, describe
from app.serving.prove import Proven
from app.serving.resolve import Recipe
from app.serving.source import Source
from app.types import Float32, Size


class AnswerRules(Struct, frozen=True):
    """How probabilities become an answer; each field is the setting of that name."""

    multi_label: bool = False
    threshold: float = 0.5
    unsure_below: float = 0.0
    unfamiliar_below: float = 0.0


class Familiarity:
    """The similarity of photos to the photos of the proof."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._reference_features = l2_normalize(np.stack([output.features for output in outputs]))

    def __call__(self, output: Output) -> float:
        """Return the highest cosine similarity to any proof photo, from -1 to 1."""
        return float((self._reference_features @ l2_normalize(output.features)).max())


class Model(Struct, frozen=True):
    """A model that is open.

    Up to `callers` threads may call `run` at once. `decode_size` is the (height, width) that large JPEGs need
    not be decoded beyond; None decodes exactly.
    `familiarity` is None without a proof, `explain` without a feature map.
    """

    card: ModelCard
    rules: AnswerRules
    prepare: Prepare
    run: Run
    callers: int
    exif: Exif
    decode_size: Size | None = None
    familiarity: Familiarity | None = None
    explain: Explainer | None = None


def assemble(source: Source, network: Recognized, recipe: Recipe, proven: Proven) -> Model:
    """Return the model that serves the proven engine."""
    engine, preprocess = proven.engine, recipe.preprocess
    prepare, run = engine.bind(preprocess)
    look, explain = engine.predict_with_features, None
    if look and isinstance(network, Network):
        explain = Explainer(prepare, look, network.head, preprocess, recipe.classes)
    return Model(
        card=describe(source, network, recipe, proven),
        rules=AnswerRules(recipe.multi_label, recipe.threshold, recipe.unsure_below, recipe.unfamiliar_below),
        prepare=prepare,
        run=run,
        callers=engine.callers,
        exif=recipe.exif,
        decode_size=preprocess.least if recipe.jpeg_downscale and not engine.exact else None,
        familiarity=Familiarity(proven.outputs) if proven.outputs else None,
        explain=explain,
    )


def l2_normalize(vectors: Float32) -> Float32:
    """Scale (..., features) vectors to length 1; zero vectors stay zero and are similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]

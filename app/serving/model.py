"""An open model: the functions that answer, the rules for an answer, and the card that describes it."""

from msgspec import Struct

from app.engines.contract import Network, Prepare, Recognized, Run
from app.engines.grad_cam import Explainer
from app.photos.decode import Exif
from app.serving.card import ModelCard, describe
from app.serving.familiarity import Familiarity, familiarity
from app.serving.prove import Proven
from app.serving.resolve import Recipe
from app.serving.source import Source


class AnswerRules(Struct, frozen=True):
    """How probabilities become an answer; each field is the setting of that name."""

    multi_label: bool = False
    threshold: float = 0.5
    unsure_below: float = 0.0
    unfamiliar_below: float = 0.0


class Opened(Struct, frozen=True):
    """A model that is built and proven: its files, its network, its recipe and its engine."""

    source: Source
    network: Recognized
    recipe: Recipe
    proven: Proven


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
    decode_size: tuple[int, int] | None = None
    familiarity: Familiarity | None = None
    explain: Explainer | None = None


def assemble(opened: Opened) -> Model:
    """Return the model that serves the proven engine."""
    network, recipe, proven = opened.network, opened.recipe, opened.proven
    engine, preprocess = proven.engine, recipe.preprocess
    prepare, run = engine.bind(preprocess)
    look, explain = engine.predict_with_features, None
    if look and isinstance(network, Network):
        explain = Explainer(prepare, look, network.head, preprocess, recipe.labels)
    return Model(
        card=describe(opened.source, network, recipe, proven),
        rules=AnswerRules(recipe.multi_label, recipe.threshold, recipe.unsure_below, recipe.unfamiliar_below),
        prepare=prepare,
        run=run,
        callers=engine.callers,
        exif=recipe.exif,
        decode_size=preprocess.least if recipe.jpeg_downscale and not engine.exact else None,
        familiarity=familiarity(proven.outputs, opened.source.proof, recipe.exif, recipe.show_proof),
        explain=explain,
    )

"""Proving: the answers are those of the notebook, and int8 is used only where they stay so."""

import logging
from collections.abc import Iterator, Sequence

from msgspec import Struct

from app.engines.contract import Engine, Output
from app.errors import Int8Unavailable, ProofError
from app.photos.decode import decode
from app.serving.diagnosis import diagnose
from app.serving.precision import Precision, compare, measure_gain
from app.serving.proof import Proof, ProofResult, check_classes, disagreement, replay, with_probabilities
from app.serving.proof import compare as compare_proof
from app.serving.resolve import Recipe
from app.types import Float32

logger = logging.getLogger(__name__)


class Proven(Struct, frozen=True):
    """The engine that serves, with its outputs for the photos of the proof, and how well they agree.

    Without a proof, `result` is None and there are no `outputs`.
    """

    engine: Engine
    precision: Precision
    result: ProofResult | None = None
    outputs: Sequence[Output] = ()


def prove_engine(engine: Engine, recipe: Recipe, proof: Proof | None) -> Proven:
    """Replay the proof, and choose the precision by it.

    Raises ProofError if an answer is not the notebook's, or if the settings insist on int8 in vain.
    """
    result, outputs = None, list[Output]()
    proof = with_probabilities(proof, recipe.multi_label) if proof else None
    if proof:
        result, outputs = _replayed(engine, recipe, proof)
        logger.info(
            "the proof agrees: %d photos, largest difference %.5f", result.photos, result.worst_difference
        )
    proven = Proven(engine, Precision("float32", "the setting precision"), result, outputs)
    return proven if recipe.precision == "float32" else _select_precision(proven, recipe, proof)


def _replayed(engine: Engine, recipe: Recipe, proof: Proof) -> tuple[ProofResult, list[Output]]:
    """Replay the proof through the served pipeline.

    Raises ProofError unless all photos agree: it names the worst photo, and the settings that would mend it.
    """
    check_classes(proof, recipe.classes)
    outputs = replay(proof, engine.bind, recipe.preprocess, recipe.exif)
    result = compare_proof(proof, outputs)
    if result.agrees:
        return result, outputs
    logger.info("the proof fails: trying other settings on its photos")
    cause = diagnose(proof, engine.bind, recipe.preprocess, recipe.exif, outputs)
    raise ProofError(f"{disagreement(proof, outputs, result)} {cause}")


def _select_precision(proven: Proven, recipe: Recipe, proof: Proof | None) -> Proven:
    """Return the same in int8 if its outputs for the proof agree and it is faster."""
    try:
        int8 = proven.engine.quantized(_pixels(proof, recipe))
        if proof:  # without one, there were no pixels
            proven = _compared(proven, int8, recipe, proof)
    except Int8Unavailable as reason:
        proven = Proven(proven.engine, Precision("float32", str(reason)), proven.result, proven.outputs)
    precision = proven.precision
    if precision.used != recipe.precision != "auto":
        raise ProofError(
            f'The setting precision is "int8", but {precision.why}: set precision to "float32" or "auto".'
        )
    logger.info("computing in %s: %s", precision.used, precision.why)
    return proven


def _pixels(proof: Proof | None, recipe: Recipe) -> Iterator[Float32]:
    """Yield the (3, H, W) pixels of the proof's photos. Raises Int8Unavailable if there is no proof."""
    if proof is None:
        raise Int8Unavailable("there is no proof_url, by whose photos int8 could be judged")
    for each in proof.photos:
        yield recipe.preprocess(decode(each.photo, recipe.exif))


def _compared(proven: Proven, int8: Engine, recipe: Recipe, proof: Proof) -> Proven:
    """Return the engine that the comparison of float32 and int8 chooses."""
    outputs = replay(proof, int8.bind, recipe.preprocess, recipe.exif)
    precision = compare(
        proven.outputs,
        outputs,
        measure_gain(proven.engine, int8, recipe.preprocess),
        unsure_below=recipe.unsure_below,
        threshold=recipe.threshold if recipe.multi_label else None,
        insist=recipe.precision == "int8",
    )
    if precision.used == "float32":
        return Proven(proven.engine, precision, proven.result, proven.outputs)
    return Proven(int8, precision, compare_proof(proof, outputs), outputs)

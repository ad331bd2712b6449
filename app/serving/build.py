"""Building: the engine that computes a network, warmed up."""

import importlib
from typing import Final

import numpy as np
from PIL import Image

from app.engines.contract import Engine, Load, Network
from app.engines.onnx_file import OnnxFileEngine, WholeNetwork
from app.engines.photo_file import PhotoEngine, PhotoNetwork
from app.errors import CheckpointError
from app.photos.transforms import USUAL_SIZE
from app.serving.resolve import Recipe
from app.settings import ENGINES

MAX_CAUSE: Final = 200  # characters of an engine's own message


def build(network: Network | WholeNetwork | PhotoNetwork, recipe: Recipe) -> Engine:
    """Return the engine that the recipe asks for. Raises the errors of the engine's `load`."""
    if isinstance(network, WholeNetwork):
        return OnnxFileEngine(network, recipe.multi_label)
    if isinstance(network, PhotoNetwork):
        return PhotoEngine(network)
    load: Load = importlib.import_module(f"app.engines.{ENGINES[recipe.engine]}").load
    return load(network, recipe.classes, recipe.multi_label)


def warm_up(engine: Engine, recipe: Recipe) -> None:
    """Compute a black picture. Raises CheckpointError if that fails, or answers NaN or infinity."""
    prepare, run = engine.bind(recipe.preprocess)
    size = recipe.preprocess.size or USUAL_SIZE
    try:
        (output,) = run([prepare(Image.new("RGB", size[::-1]))])
    except Exception as error:  # of ONNX Runtime and torch, which have no common class of their own
        raise CheckpointError(
            "The network cannot compute a picture of {} x {} px ({}): set image_size to the size it was "
            "trained with.".format(*size, " ".join(str(error).split())[:MAX_CAUSE])
        ) from error
    if not np.isfinite(output.probabilities).all():
        raise CheckpointError(
            "The network produces NaN or infinite scores for a black image: its weights are too large to "
            "compute with. Save a checkpoint from before the training diverged."
        )

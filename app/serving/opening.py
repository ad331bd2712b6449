"""Opening a model: read, recognize, resolve, build, prove. Each step makes one value, and makes it once."""

import asyncio
import logging
from functools import partial

from app.progress import Report
from app.serving.build import build, warm_up
from app.serving.model import Model, Opened, assemble
from app.serving.prove import prove_engine
from app.serving.rebuild import find_network
from app.serving.resolve import resolve
from app.serving.source import Source, read_source
from app.settings import Settings

logger = logging.getLogger(__name__)


async def open_model(settings: Settings, report: Report) -> Model:
    """Open the model that the settings name; `report` receives each phase.

    Raises StartupError, whose message is one sentence for the person who deploys.
    """
    opened = await open_proven(settings, report)
    opened.source.checkpoint.release()  # the engine has its own copy of the weights
    return await asyncio.to_thread(assemble, opened)


async def open_proven(settings: Settings, report: Report) -> Opened:
    """Do the same up to the proof, with the weights still in memory. Raises StartupError."""
    source = await read_source(
        settings.model_url, report, sha256=settings.model_sha256, proof_url=settings.proof_url
    )
    return await asyncio.to_thread(partial(_open, source, settings, report))


def _open(source: Source, settings: Settings, report: Report) -> Opened:
    """Do everything that follows the download, on a thread of its own."""
    report("building", None)
    network = find_network(source, settings, report)
    recipe = resolve(settings, source.checkpoint, network)
    for note in recipe.notes:
        logger.warning("%s", note)
    engine = build(network, recipe)

    report("warming up", None)
    warm_up(engine, recipe)
    logger.info(
        "serving %s (%s, %d classes); %s, mean %s, std %s",
        *(network.architecture, network.writer, len(recipe.classes)),
        ", ".join(recipe.preprocess.words) or "photos as they are",
        *(list(recipe.preprocess.mean), list(recipe.preprocess.std)),
    )
    if source.proof:
        report("proving", None)
    return Opened(source, network, recipe, prove_engine(engine, recipe, source.proof))

"""`python -m app predict`: the answers for photos, as the server gives them."""

import argparse
import asyncio
import json
import sys

import msgspec

from app.errors import RequestError, plain
from app.metrics import Metrics
from app.progress import show_progress
from app.serving.opening import open_model
from app.serving.predictor import Predictor
from app.settings_file import load_settings


def run(options: argparse.Namespace) -> int:
    """Print the answer for each photo of `options.images`; return 1 if one of them failed."""
    return asyncio.run(_predict(options))


async def _predict(options: argparse.Namespace) -> int:
    predictor = Predictor(await open_model(load_settings(options.settings), show_progress), Metrics())
    show_progress("", None)
    failed = 0
    for path in options.images:
        try:
            prediction = await predictor.predict(path.read_bytes())
        except (RequestError, OSError) as error:
            failed = 1
            print(f"{plain(path)}: {error}", file=sys.stderr)
            continue
        if options.json:
            print(json.dumps({"file": str(path), **msgspec.to_builtins(prediction)}))
        else:
            print(f"{plain(path)}: {plain(prediction.result)} ({prediction.confidence:.1%})")
    await predictor.close()
    return failed

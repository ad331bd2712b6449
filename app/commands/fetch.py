"""`python -m app fetch`: download the model and make sure that it can be served."""

import argparse
import asyncio

from app.progress import show_progress
from app.serving.card import ModelCard
from app.serving.opening import open_model
from app.settings import Settings
from app.settings_file import load_catalog


def run(options: argparse.Namespace) -> int:
    """Open each model that the settings name, and print its card in a line."""
    catalog = load_catalog(options.settings)
    versions = {f"{name}: ": version.settings for name, version in catalog.versions.items()}
    for name, settings in (versions or {"": catalog.settings}).items():
        card = opened(settings)
        print(f"{name}{card.architecture}, {card.bytes:,} bytes, sha256 {card.sha256}: ready to be served")
    return 0


def opened(settings: Settings) -> ModelCard:
    """Download, open and warm up the model, and return its card. Raises StartupError."""
    try:
        return asyncio.run(open_model(settings, show_progress)).card
    finally:
        show_progress("", None)

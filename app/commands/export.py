"""`python -m app export`: write a folder that answers without Python."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from app.exporting.folder import Written, write_folder
from app.exporting.site import write_site
from app.progress import show_progress
from app.serving.opening import open_proven
from app.settings import Settings
from app.settings_file import load_settings


def run(options: argparse.Namespace) -> int:
    """Write `options.folder` for the targets `options.to`, and print what it holds."""
    written = export(load_settings(options.settings), options.folder, options.to, half=options.half)
    print(
        f"{options.folder}: model.onnx has {written.model_bytes:,} bytes and gives the server's answers to "
        f"{written.photos} photos, largest difference {written.worst_difference:.7f}"
    )
    return 0


def export(settings: Settings, folder: Path, targets: Sequence[str], *, half: bool = False) -> Written:
    """Open the model, and write the folder for the targets. Raises StartupError."""
    settings = replace(settings, precision="float32")
    try:
        opened = asyncio.run(open_proven(settings, show_progress))
    finally:
        show_progress("", None)
    written = write_folder(folder, opened, targets=targets, half=half)
    if "web" in targets:
        write_site(folder, settings)
    return written

"""`python -m app export`: write a folder that answers without Python."""

import argparse
import asyncio

from msgspec.structs import replace

from app.exporting.folder import write_folder
from app.exporting.site import write_site
from app.progress import show_progress
from app.serving.opening import open_proven
from app.settings_file import load_settings


def run(options: argparse.Namespace) -> int:
    """Write `options.folder` for the targets `options.to`, and print what it holds."""
    settings = replace(load_settings(options.settings), precision="float32")
    try:
        opened = asyncio.run(open_proven(settings, show_progress))
    finally:
        show_progress("", None)
    written = write_folder(options.folder, opened, targets=options.to, half=options.half)
    if "web" in options.to:
        write_site(options.folder, settings)
    print(
        f"{options.folder}: model.onnx has {written.model_bytes:,} bytes and gives the server's answers to "
        f"{written.photos} photos, largest difference {written.worst_difference:.7f}"
    )
    return 0

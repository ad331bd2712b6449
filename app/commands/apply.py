"""`python -m app apply`: bring a cluster to the state of the settings file."""

import argparse

from app.cluster.node import NodeFolder
from app.settings_file import find_settings, load_catalog


def run(options: argparse.Namespace) -> int:
    """Deploy what is new, relink, and delete what is gone. Raises StartupError; then no link has changed."""
    catalog = load_catalog(options.settings or find_settings())
    folder = NodeFolder(options.folder)
    address = folder.find()
    from app.cluster import ray_serve  # Ray reads the environment when it is imported

    ray_serve.connect(address, folder.node)
    try:
        ray_serve.apply(catalog)
    finally:
        ray_serve.disconnect()
    print(f"applied: {', '.join(catalog.applications)}")
    return 0

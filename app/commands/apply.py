"""`python -m app apply`: bring a cluster to the state of the settings file."""

import argparse

from app.cluster.member import connected
from app.cluster.node import NodeFolder
from app.settings_file import load_catalog


def run(options: argparse.Namespace) -> int:
    """Deploy what is new, relink, and delete what is gone. Raises StartupError; then no link has changed."""
    catalog = load_catalog(options.settings)
    folder = NodeFolder(options.folder)
    with connected(folder.find(), folder.node) as cluster:
        cluster.apply(catalog)
    print(f"applied: {', '.join(catalog.applications)}")
    return 0

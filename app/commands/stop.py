"""`python -m app stop`: finish the requests under way, and end the node of this machine."""

import argparse
import contextlib
import os
import signal
import time
from typing import Final

from app.cluster.node import NodeFolder, alive, end
from app.errors import StartupError

SECONDS: Final = 60.0  # for the front to drain and to end its node


def run(options: argparse.Namespace) -> int:
    """Stop the front of this machine, and then all processes of its node. Raises StartupError."""
    folder = NodeFolder(options.folder)
    folder.find()  # or an error: there is none
    front, ray = folder.read("front.pid"), folder.read("ray.pid")
    if alive(front):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(front), signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while alive(front):
            if time.monotonic() > deadline:
                raise StartupError(f"Process {front} has not ended: kill -9 {front}, and run stop again.")
            time.sleep(0.1)
    if alive(ray):  # its front was killed
        end(int(ray))
    return 0

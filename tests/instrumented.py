"""`python -m tests.instrumented serve ...`: the server, and what a test must see or allow within its process.

PROBE in the environment names a file that always has the longest turn of the event loop so far, in
milliseconds of CPU time of its thread, which a busy machine does not lengthen. LOOPBACK allows links to
servers on 127.0.0.1.
"""

import asyncio
import ipaddress
import os
import sys
import time
from pathlib import Path
from typing import Any

from app import cli


def watch_the_event_loop(file: Path) -> None:
    """Measure every turn of the event loop: all callbacks between two looks at the sockets."""
    turn, longest = asyncio.BaseEventLoop._run_once, 0.0  # type: ignore[attr-defined]

    def watched(loop: Any) -> None:
        nonlocal longest
        start = time.thread_time()
        turn(loop)
        spent = (time.thread_time() - start) * 1000
        if spent > longest or not file.exists():  # a test removes the file to begin again
            longest = spent
            new = file.with_suffix(".new")
            new.write_text(f"{spent:.1f}")
            new.rename(file)

    asyncio.BaseEventLoop._run_once = watched  # type: ignore[attr-defined]


def allow_loopback() -> None:
    """Fetch images from 127.0.0.1, at any port, as the tests of fetch_image do by an argument."""
    from app.fetching import image

    class Open(image.Guard):
        def check_link(self, url: str) -> str:
            return url

        def open_socket(self, target: tuple[Any, ...]) -> Any:
            return image.Guard(self.blocked, (target[4][1],)).open_socket(target)

    home = ipaddress.ip_network("127.0.0.0/8")
    image.fetch_image.__defaults__ = (Open(tuple(n for n in image.BLOCKED if n != home)),)


if __name__ == "__main__":
    if probe := os.environ.get("PROBE"):
        watch_the_event_loop(Path(probe))
    if os.environ.get("LOOPBACK"):
        allow_loopback()
    sys.exit(cli.main())

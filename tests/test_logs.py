"""The log: what a terminal shows, and what stays."""

import os
import re
import subprocess
import sys
import threading

import pytest

from app.download import cache_path
from app.logs import progress_bar
from app.opening import MODELS
from tests.conftest import ROOT, SECONDS, V1_CHECKPOINT, bears_environment
from tests.http_server import Handler, send, serving


@pytest.mark.parametrize(
    ("percent", "received", "line"),
    [
        (50, 500, "downloading [############             ] 50 %"),
        (None, 12_345_678, "downloading, 12 MB"),
        (None, None, "downloading"),
    ],
)
def test_a_bar_says_how_far_it_has_come(percent: int | None, received: int | None, line: str) -> None:
    assert progress_bar("downloading", percent, received) == line


def test_a_terminal_shows_a_bar_which_the_next_line_overwrites() -> None:
    content = V1_CHECKPOINT.read_bytes()
    seen = threading.Event()

    def answer(handler: Handler) -> None:
        send(handler, content[: len(content) // 2], length=len(content))
        seen.wait(SECONDS)
        handler.wfile.write(content[len(content) // 2 :])

    terminal, stderr = os.openpty()
    with serving(answer) as (url, _):
        link = f"{url}/stage-2.pth"
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **bears_environment(APP_MODEL_URL=link)},
            stderr=stderr,
        )
        os.close(stderr)
        shown = ""
        try:
            while "ready after" not in shown:
                shown += os.read(terminal, 4096).decode()
                if "] 49 %" in shown:
                    seen.set()
        finally:
            seen.set()
            process.terminate()
            process.wait(SECONDS)
            os.close(terminal)
            cache_path(link, MODELS).unlink(missing_ok=True)
    assert "\r\x1b[Kdownloading [############             ] 49 %" in shown
    for line in shown.split("\n")[:-1]:
        assert re.match(r"\d{4}-\d\d-\d\d .* INFO ", line.rpartition("\x1b[K")[2])  # what stays of it

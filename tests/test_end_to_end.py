"""The main job, for somebody who has just cloned the project: the demo, a photo."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT, SECONDS, ServerProcess

PHOTOS = sorted((ROOT / "app" / "samples").iterdir())


@pytest.fixture(scope="module")
def demo(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """The server as it is before anything is edited."""
    server = start_server()
    server.wait_for("ready after")
    return server


def test_the_log_says_that_this_is_the_demo(demo: ServerProcess) -> None:
    assert any("this is the demo; to serve your own file: " in line for line in demo.lines)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
def test_the_demo_names_the_garment_on_a_photo(demo: ServerProcess, photo: Path) -> None:
    with photo.open("rb") as file:
        answer = requests.post(f"{demo.url}/analyze", files={"file": file}, timeout=SECONDS).json()
    assert answer["result"] == photo.stem
    assert len(answer["predictions"]) == 10


def test_serving_imports_neither_torch_nor_fastai() -> None:
    code = (
        "import sys, app.cli, app.web.app, app.web.protocol\n"
        f"assert app.cli.main(['predict', {str(PHOTOS[0])!r}]) == 0\n"
        "print([name for name in ('torch', 'fastai', 'timm', 'onnx', 'torchvision') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"

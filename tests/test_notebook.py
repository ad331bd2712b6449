"""The page in a notebook: executed by nbclient, and shown by a real JupyterLab in Chromium."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastai_now.notebook import Page
from tests.browser import CHROMIUM, chromium, new_page
from tests.conftest import DATA, ROOT, SECONDS, started

pytestmark = [pytest.mark.torch, pytest.mark.slow]
BOOK = ROOT / "notebook" / "train_and_serve.ipynb"
TOKEN = "a-token-of-the-tests"
TRAINED = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from app.graphs.export import import_fastai; import_fastai()
from fastai.vision.all import *
photos = sorted(Path({str(DATA / "images")!r}).iterdir())[:24]
dls = ImageDataLoaders.from_lists(
    ".", photos, ["teddy" if i % 2 else "bear" for i in range(24)], item_tfms=Resize(64), bs=8, num_workers=0)
learn = vision_learner(dls, resnet18, pretrained=False)
from fastai_now.notebook import serve
"""


def notebook(*sources: str) -> str:
    """A notebook of code cells, as JSON."""
    cells = [
        {"cell_type": "code", "id": f"c{number}", "metadata": {}, "outputs": [], "execution_count": None}
        | {"source": source}
        for number, source in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells})


def run_python(source: str, folder: Path) -> str:
    """Run Python, and return its standard output."""
    command = [sys.executable, "-c", source]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def execute(folder: Path, name: str) -> list[dict[str, Any]]:
    """Execute a notebook with nbclient, and return its cells with their outputs."""
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", name]  # of nbclient
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 0, ended.stderr[-3000:]
    cells: list[dict[str, Any]] = json.loads((folder / name).read_text("utf-8"))["cells"]
    return cells


def printed(cell: dict[str, Any]) -> str:
    """The text that a cell printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_the_notebook_of_the_project_trains_serves_and_agrees(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebook", tmp_path / "notebook")
    for name in ("app", "fastai_now"):
        (tmp_path / name).symlink_to(ROOT / name)
    cells = execute(tmp_path / "notebook", BOOK.name)
    frame = next(cell for cell in cells if "".join(cell["source"]).endswith("\npage"))
    assert "<iframe" in "".join(frame["outputs"][-2]["data"]["text/html"])
    assert "Your page: " in printed(frame)
    served, learned = (line.split() for line in printed(cells[-3]).splitlines())
    assert served[0] == learned[0] == "hat"
    assert float(served[1]) == pytest.approx(float(learned[1]), abs=1e-3)
    files = {path.name for path in (tmp_path / "notebook" / "classifier").iterdir()}
    assert files == {"stage-2.pth", "proof.json", "samples", "settings.toml"}


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(BOOK.read_text("utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


PAGES = """
first, photo = serve(learn), photos[0]
print(first.predict(photo) == first.predict(str(photo)) == first.predict(photo.read_bytes()))
print(first.predict(PILImage.create(photo))["result"] in ("bear", "teddy"))
try: first.predict(b"no photo")
except ValueError as error: print(error)
second = serve(learn)
print(first._process.poll(), second.predict(photo)["result"] in ("bear", "teddy"))

import os, types  # stand-ins for the function of Colab and the variable of Kaggle, by their documentation
os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
second._ipython_display_()
output = types.SimpleNamespace(serve_kernel_port_as_iframe=lambda port, height: print(port == second.port))
sys.modules |= {"google.colab": types.ModuleType("google.colab"), "google.colab.output": output}
second._ipython_display_()
"""


def test_a_page_takes_files_bytes_and_pictures_and_is_replaced(tmp_path: Path) -> None:
    lines = run_python(TRAINED + PAGES, tmp_path).splitlines()
    assert [line for line in lines if not line.startswith("unfamiliar_below")] == [
        "True",
        "True",
        "No picture was recognized in these 8 bytes; JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read.",
        "0 True",
        "Kaggle shows no page of a notebook's own; page.predict(photo) works, and",
        "fastai-now export site --to web --settings classifier/settings.toml writes one to download.",
        "True",
    ]


def test_a_server_that_does_not_start_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('model_url = "nowhere.pth"\nclasses = ["a", "b"]\n')
    with pytest.raises(RuntimeError, match=r"nowhere\.pth does not exist; the path of a file was expected"):
        Page(tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab whose folder has book.ipynb."""
    (tmp_path / "book.ipynb").write_text(notebook(TRAINED + "page = serve(learn)\npage"))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command.append(f"--IdentityProvider.token={TOKEN}")
    home = {
        "HOME": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path),
    }
    with started(command, cwd=tmp_path, **home) as server:
        yield server.wait_for(r"(http://127\.0\.0\.1:\d+/)lab")[1]


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_page_answers_below_its_cell_in_jupyterlab(lab: str) -> None:
    with chromium() as browser:
        page = new_page(browser)
        page.goto(f"{lab}lab/tree/book.ipynb?token={TOKEN}")
        page.locator(".jp-CodeCell .cm-content").click()
        page.keyboard.press("Control+Enter")
        frame = page.frame_locator(".jp-OutputArea iframe")
        frame.locator("#file").set_input_files(DATA / "images" / "a05_640x480.jpg")
        frame.locator("body[data-state=answer]").wait_for()
        assert frame.locator("body").inner_text().count("bear") >= 1
        assert "/proxy/" in page.locator(".jp-OutputArea iframe").get_attribute("src")

"""The main job, as somebody meets it who has just cloned the project: the demo, its page, a photo."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import DATA, ROOT, SECONDS, ServerProcess, bears_environment

PHOTOS = sorted((ROOT / "examples" / "photos").iterdir())
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def demo(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """The server as it is before anything is edited."""
    server = start_server()
    server.wait_for("ready after")
    return server


def test_the_log_says_that_this_is_the_demo(demo: ServerProcess) -> None:
    assert any("this is the demo: edit model_url and classes in" in line for line in demo.lines)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
def test_the_demo_names_the_garment_on_a_photo(demo: ServerProcess, photo: Path) -> None:
    with photo.open("rb") as file:
        answer = requests.post(f"{demo.url}/analyze", files={"file": file}, timeout=SECONDS).json()
    assert answer["result"] == photo.stem
    assert len(answer["predictions"]) == 10


def test_serving_imports_neither_torch_nor_fastai() -> None:
    code = (
        "import sys, app.cli, app.server, app.protocol\n"
        f"assert app.cli.main(['predict', {str(PHOTOS[0])!r}]) == 0\n"
        "print([name for name in ('torch', 'fastai', 'timm', 'onnx', 'torchvision') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


# --- the page, in a real browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium): the page is not tested")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(params=[(360, 740, "light"), (1280, 800, "dark")], ids=["phone", "desktop"])
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of its own; no test leaves a message in its console, but for answers that are errors."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    yield page
    context.close()
    assert [text for text in messages if "the server responded with a status of" not in text] == []


def test_a_photo_chosen_on_the_page_is_shown_with_its_answer(page: Any, demo: ServerProcess) -> None:
    page.goto(demo.url)
    page.get_by_text("It tells apart: dress, hat").wait_for()
    page.get_by_label("Choose a photo").set_input_files(ROOT / "examples" / "photos" / "shoes.jpg")
    page.get_by_role("heading", name="shoes,").wait_for()
    assert page.locator("#scores li").count() == 5
    assert page.locator("#scores li").first.inner_text().startswith("shoes")
    assert page.locator("#preview").evaluate("image => image.naturalWidth") > 0
    assert page.locator("#problem").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_file_that_is_no_photo_gets_its_sentence_and_the_next_photo_its_answer(
    page: Any, demo: ServerProcess
) -> None:
    page.goto(demo.url)
    page.get_by_label("Choose a photo").set_input_files(ROOT / "README.md")
    page.get_by_role("alert").get_by_text("No picture was recognised").wait_for()
    page.get_by_label("Choose a photo").set_input_files(ROOT / "examples" / "photos" / "hat.jpg")
    page.get_by_role("heading", name="hat,").wait_for()
    assert page.locator("#problem").is_hidden()


def test_an_unsure_answer_says_so(page: Any, start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(**bears_environment(APP_UNSURE_BELOW="0.5"))
    page.goto(server.url)
    page.get_by_label("Choose a photo").set_input_files(DATA / "images" / "a02_225x223.jpg")
    page.get_by_role("heading", name="Not sure, perhaps teddys").wait_for()

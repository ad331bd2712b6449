"""The page: feedback, pictures that only the server can show, the proof's photos, folders."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import SAMPLES, choose, in_state
from tests.conftest import BEARS, ROOT, ServerProcess, bears_environment, image_bytes
from tests.serving.test_proof import write_proof

pytestmark = pytest.mark.slow
PHOTO = image_bytes("a05_640x480.jpg")
AXE = ROOT / "tests" / "node_modules" / "axe-core" / "axe.min.js"
COLOR = (
    "image => { if (image.complete === false) return [];"
    " const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;"
    " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 1, 1);"
    " return [...context.getImageData(0, 0, 1, 1).data]; }"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def asking(start_server: Callable[..., ServerProcess], place: Path) -> ServerProcess:
    """A server with feedback, whose answers are mostly unsure."""
    server = start_server(
        **bears_environment(APP_FEEDBACK=str(place), APP_FEEDBACK_DAYS="30", APP_UNSURE_BELOW="0.99")
    )
    server.wait_for("ready after")
    return server


def named(data: bytes, name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def answered(page: Any, url: str, file: Any) -> None:
    page.goto(url)
    choose(page, file)
    in_state(page, "answer")


def test_what_is_kept_is_said_before_it_is_sent_and_can_be_undone(
    open_page: Callable[..., Any], asking: ServerProcess, place: Path
) -> None:
    page = open_page("small-phone")
    answered(page, asking.url, named(PHOTO, "x.jpg", "image/jpeg"))
    page.get_by_role("button", name="Not right?").click()
    dialog = page.get_by_role("dialog", name="What is it really?")
    said = dialog.inner_text()
    assert "kept on this server for 30 days" in said and "at most 2,000 photos" in said
    assert not list(place.rglob("*.jpg"))
    likeliest = page.evaluate("document.querySelector('#scores bdi').textContent")
    offered = (
        dialog.get_by_role("combobox")
        .locator("option:enabled")
        .evaluate_all("all => all.map(one => one.value)")
    )
    assert sorted([likeliest, *offered]) == sorted(BEARS)
    dialog.get_by_role("combobox").select_option(offered[0])
    dialog.get_by_role("button", name="Send").click()
    page.get_by_role("heading", name="Thank you.").wait_for()
    (kept,) = place.rglob("*.jpg")
    assert kept.parent.name == offered[0]
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("heading", name="The photo is deleted.").wait_for()
    assert not list(place.rglob("*.jpg"))
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "not-right"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_dialog(
    open_page: Callable[..., Any], asking: ServerProcess, scheme: str
) -> None:
    if not AXE.exists():
        pytest.skip("there is no axe-core here (npm install in tests/): accessibility is not checked")
    page = open_page("small-phone", scheme)
    answered(page, asking.url, named(PHOTO, "x.jpg", "image/jpeg"))
    page.get_by_role("button", name="Not right?").click()
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({})")
    assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]] == []


def test_feedback_that_cannot_be_kept_is_said(open_page: Callable[..., Any], asking: ServerProcess) -> None:
    page = open_page()
    answered(page, asking.url, named(PHOTO, "x.jpg", "image/jpeg"))
    page.route("**/feedback?*", lambda route: route.abort())
    page.get_by_role("button", name="Not right?").click()
    assert page.get_by_role("button", name="Send").is_disabled()
    page.get_by_role("combobox").select_option(index=1)
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Can’t reach the server").first.wait_for()
    page.get_by_role("button", name="Close").click()
    assert page.get_by_role("dialog").count() == 0


def test_without_the_setting_nobody_is_asked(open_page: Callable[..., Any], bears: ServerProcess) -> None:
    page = open_page()
    answered(page, bears.url, named(PHOTO, "x.jpg", "image/jpeg"))
    assert page.get_by_text("Not right?").count() == 0


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "form", "alpha"),
    [
        ("x.tif", "image/tiff", "TIFF", 255),
        ("x.png", "image/png", "PNG", 0),
        ("x.png", "image/png", "PNG", 254),
        ("x.webp", "image/webp", "WEBP", 128),
    ],
)
def test_a_picture_is_shown_as_the_network_sees_it(
    open_page: Callable[..., Any], bears: ServerProcess, name: str, kind: str, form: str, alpha: int
) -> None:
    """Of what is transparent the network sees the color; a browser shows what lies behind."""
    picture = Image.new("RGBA", (300, 200), (200, 40, 90, alpha))
    if form == "TIFF":
        picture = picture.convert("RGB")
    page = open_page("phone")
    with page.expect_response("**/picture"):
        answered(page, bears.url, named(encoded(picture, form), name, kind))
    page.wait_for_function("document.getElementById('photo').naturalWidth === 300")
    page.wait_for_function(f"(({COLOR})(document.getElementById('photo')))[3] === 255")
    shown = page.locator("#photo").evaluate(COLOR)
    assert np.abs(np.array(shown[:3]) - (200, 40, 90)).max() < 12
    assert page.locator("#no-preview").is_hidden()


def test_an_opaque_picture_is_asked_for_nowhere(open_page: Callable[..., Any], bears: ServerProcess) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opaque = encoded(Image.new("RGB", (300, 200), (200, 40, 90)), "PNG")
    with page.expect_response("**/seen.js"):
        answered(page, bears.url, named(opaque, "x.png", "image/png"))
    answered(page, bears.url, named(PHOTO, "x.jpg", "image/jpeg"))
    assert not [url for url in asked if url.endswith("/picture")]


def test_of_several_photos_those_that_only_the_server_shows_are_shown(
    open_page: Callable[..., Any], bears: ServerProcess
) -> None:
    page = open_page()
    page.goto(bears.url)
    tiff = encoded(Image.new("RGB", (300, 200), (200, 40, 90)), "TIFF")
    choose(page, [named(tiff, "x.tif", "image/tiff"), named(PHOTO, "y.jpg", "image/jpeg")])
    page.get_by_text("2 of 2 photos").first.wait_for()
    color = page.locator("#cards canvas").first.evaluate(COLOR)
    assert np.abs(np.array(color[:3]) - (200, 40, 90)).max() < 12


def test_an_unsure_answer_has_the_most_similar_photos_of_the_proof(
    open_page: Callable[..., Any],
    start_server: Callable[..., ServerProcess],
    v1_predictions: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    options = {"APP_SHOW_PROOF": "true", "APP_EXIF": "ignore", "APP_UNSURE_BELOW": "1"}
    server = start_server(**bears_environment(APP_PROOF_URL=write_proof(tmp_path, v1_predictions), **options))
    server.wait_for("ready after")
    page = open_page("small-phone")
    answered(page, server.url, named(PHOTO, "x.jpg", "image/jpeg"))
    page.get_by_text("The most similar photos the model was checked with").wait_for()
    assert page.locator("#nearest li").count() == 3
    assert set(page.locator("#nearest bdi").all_inner_texts()) <= set(BEARS)
    page.wait_for_function(
        "[...document.querySelectorAll('#nearest img')].every(image => image.naturalWidth)"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_folder_may_be_chosen(open_page: Callable[..., Any], demo: ServerProcess, tmp_path: Path) -> None:
    for name in ("hat", "shoes"):
        (tmp_path / f"{name}.jpg").write_bytes((SAMPLES / f"{name}.jpg").read_bytes())
    (tmp_path / "notes.txt").write_text("no photo")
    page = open_page()
    page.goto(demo.url)
    assert page.get_by_text("Choose a folder").is_visible()
    page.locator("#folder").set_input_files(tmp_path)
    page.get_by_text("2 of 2 photos").first.wait_for()
    assert open_page("phone").goto(demo.url) and page.get_by_text("Choose a folder").is_hidden()

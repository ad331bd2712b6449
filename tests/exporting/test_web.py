"""The page without a server, in a real browser: its answers, offline, and that no photo leaves it."""

import base64
import functools
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.browser import CHROMIUM, choose, chromium, in_state
from tests.conftest import IMAGES, SECONDS, bears_environment, run_app
from tests.exporting.programs import NODE_MODULES

pytest.importorskip("playwright.sync_api")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and (NODE_MODULES / "onnxruntime-web").exists() and shutil.which("npm")),
        reason="chromium, npm or onnxruntime-web are missing",
    ),
]


class Files(SimpleHTTPRequestHandler):
    """A static host: files with their types, and nothing else."""

    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "bears"
    ended = run_app("export", str(folder), "--to", "web", **bears_environment())
    assert ended.returncode == 0, ended.stderr
    return folder / "web"


@contextmanager
def serving(folder: Path) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/"


@contextmanager
def opened(browser: Any) -> Iterator[Any]:
    """A page in a fresh profile."""
    context = browser.new_context()
    context.set_default_timeout(SECONDS * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def host(site: Path) -> Iterator[str]:
    with serving(site) as server:
        yield address(server)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, host: str) -> Iterator[Any]:
    """The page, with all requests that it makes in `page.asked`, and its errors in `page.failed`."""
    with opened(browser) as page:
        page.asked, page.failed, page.address = [], [], host
        page.context.on("request", lambda request: page.asked.append((request.method, request.url)))
        page.on("pageerror", lambda error: page.failed.append(str(error)))
        page.on("console", lambda line: page.failed.append(line.text) if line.type == "error" else None)
        page.goto(host)
        yield page


ASK = """async ([data, type]) => {
  const { ask, find } = await import(new URL("static/local.js", location));
  const photo = new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type });
  const image = new Image();
  image.src = URL.createObjectURL(photo);
  return (await ask(photo, image, new AbortController().signal, () => {})).answer;
}"""


def test_a_photo_is_answered_on_the_page_and_no_request_leaves_it(page: Any) -> None:
    photo = next(photo for photo in IMAGES if photo.name.startswith("a05"))
    choose(page, photo)
    in_state(page, "answer")
    assert page.locator("#result").text_content() == "teddys"
    assert page.locator("#confidence").text_content() == "98.4%"
    assert page.get_by_text("Your photos never leave this device.").is_visible()
    assert not page.locator("#why").is_visible()
    assert {method for method, _ in page.asked} == {"GET"}
    assert all(url.startswith((page.address, "blob:", "data:")) for _, url in page.asked)
    assert page.failed == []


def test_every_picture_is_answered_as_the_server_answers_it(
    page: Any, answers: dict[str, dict[str, float]]
) -> None:
    types = {
        ".jpg": "image/jpeg",
        ".png": "image/png",
        ".webp": "image/webp",
        ".gif": "image/gif",
        ".bmp": "image/bmp",
    }
    otherwise = {"f03_gray16_300x300.png", "h00_cmyk_400x300.jpg", "h01_ycck_gray_prog_600x400.jpg"}
    compared = 0
    for photo in IMAGES:
        if photo.name not in answers or photo.suffix not in types or photo.name in otherwise:
            continue
        data = base64.b64encode(photo.read_bytes()).decode()
        found = page.evaluate(ASK, [data, types[photo.suffix]])
        scores = {each["label"]: each["score"] for each in found["predictions"]}
        worst = max(abs(scores[label] - share) for label, share in answers[photo.name].items())
        assert worst <= 1e-3, f"{photo.name}: {worst}"
        compared += 1
    assert compared >= 50


def test_the_page_replays_the_proof(page: Any) -> None:
    page.goto(f"{page.address}?proof")
    page.locator("#proof").get_by_text("The proof holds: 4 photos, largest difference 0.0000").wait_for()


def test_a_spoiled_model_fails_the_proof_of_the_page(site: Path, spoiled: Path, browser: Any) -> None:
    shutil.copytree(site, spoiled / "web", dirs_exist_ok=True)
    shutil.copy(spoiled / "model.onnx", spoiled / "web" / "model.onnx")
    with serving(spoiled / "web") as server, opened(browser) as page:
        page.goto(f"{address(server)}?proof")
        page.locator("#proof").get_by_text("THE PROOF FAILS").wait_for()


def test_after_the_first_answer_the_page_opens_without_a_network(site: Path, browser: Any) -> None:
    with opened(browser) as page:
        with serving(site) as server:
            page.goto(address(server))
            choose(page, IMAGES[5])
            in_state(page, "answer")
            page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.goto(address(server))
        choose(page, IMAGES[5])
        in_state(page, "answer")
        assert page.locator("#result").text_content() == "teddys"
        assert page.evaluate("crossOriginIsolated")  # so that there are threads


def test_the_site_can_be_installed_and_every_file_fits_a_static_host(site: Path) -> None:
    manifest = json.loads((site / "manifest.webmanifest").read_text("utf-8"))
    assert (manifest["display"], manifest["start_url"]) == ("standalone", "./")
    assert all((site / icon["src"]).is_file() for icon in manifest["icons"])
    assert max(path.stat().st_size for path in site.rglob("*")) < 25 * 1024 * 1024


def test_now_lists_the_site_for_vercel_and_nothing_of_the_server() -> None:
    ended = run_app("now", "--static", "--dry-run", "--name", "Bears", **bears_environment())
    assert ended.returncode == 0, ended.stderr
    listed = {line.split()[-1] for line in ended.stdout.splitlines() if line.startswith(" ")}
    assert {"index.html", "model.onnx", "worker.js", "runtime/ort.wasm.min.mjs"} <= listed
    assert not any(name.endswith((".py", "Dockerfile", ".pth")) for name in listed)
    assert "as the project bears" in ended.stdout

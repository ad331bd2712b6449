"""Feedback, the picture that the network sees, and the proof's photos, over HTTP."""

import io
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import trustme
from PIL import Image

from app.photos.decode import decode
from tests.conftest import BEARS, IMAGES, SECONDS, ServerProcess, bears_environment, image_bytes
from tests.serving.test_proof import write_proof

pytestmark = pytest.mark.slow
PHOTO = image_bytes("i06_exif6_stored.jpg")  # with an orientation, and so with metadata


def give(url: str, photo: bytes = PHOTO, label: str = BEARS[0]) -> requests.Response:
    return requests.post(f"{url}/feedback", params={"label": label}, files={"file": photo}, timeout=SECONDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "given"


@pytest.fixture(scope="module")
def server(start_server: Callable[..., ServerProcess], place: Path) -> ServerProcess:
    server = start_server(**bears_environment(APP_FEEDBACK=str(place)))
    server.wait_for("ready after")
    return server


def test_without_the_setting_nothing_is_kept_and_nothing_offered(bears: ServerProcess) -> None:
    assert give(bears.url).status_code == 404
    assert requests.delete(f"{bears.url}/feedback/{'0' * 32}", timeout=SECONDS).status_code == 404
    assert requests.post(f"{bears.url}/nearest", files={"file": PHOTO}, timeout=SECONDS).status_code == 404
    paths = requests.get(f"{bears.url}/openapi.json", timeout=SECONDS).json()["paths"]
    assert not [path for path in paths if path.startswith(("/feedback", "/nearest"))]


def test_a_photo_is_kept_upright_without_its_metadata_and_withdrawn(
    server: ServerProcess, place: Path
) -> None:
    answer = give(server.url)
    assert answer.status_code == 201
    key = answer.json()["key"]
    (kept,) = place.rglob("*.jpg")
    assert kept == place / BEARS[0] / f"{key}.jpg"
    with Image.open(kept) as image:
        assert image.size == decode(PHOTO).size
        assert not image.getexif()
    assert requests.delete(f"{server.url}/feedback/{key}", timeout=SECONDS).status_code == 204
    assert requests.delete(f"{server.url}/feedback/{key}", timeout=SECONDS).status_code == 404
    assert not list(place.rglob("*.jpg"))


@pytest.mark.parametrize("label", ["", "nobody", "../black", "black/", "black\0", "BLACK", "x" * 5000])
def test_only_a_class_of_the_model_is_a_label(server: ServerProcess, place: Path, label: str) -> None:
    before = sorted(place.parent.rglob("*"))
    answer = give(server.url, label=label)
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown-label")
    assert sorted(place.parent.rglob("*")) == before


def test_what_is_no_photo_is_refused_as_always_and_not_kept(server: ServerProcess, place: Path) -> None:
    for data, code in (
        (b"no photo", "unrecognised-image"),
        (b"", "empty-file"),
        (PHOTO[:900], "truncated-image"),
    ):
        assert give(server.url, data).json()["code"] == code
    assert not list(place.rglob("*.jpg"))


def test_what_was_kept_is_nowhere_on_the_web(server: ServerProcess, place: Path) -> None:
    key = give(server.url).json()["key"]
    kept = place / BEARS[0] / f"{key}.jpg"
    names = [f"{BEARS[0]}/{key}.jpg", f"{key}.jpg", key, f"given/{BEARS[0]}/{key}.jpg", str(kept)[1:]]
    prefixes = [
        "",
        "feedback/",
        "static/",
        "static/../",
        "samples/",
        "static/%2e%2e/%2e%2e/%2e%2e/",
        "/",
        ".",
    ]
    for prefix in prefixes:
        for name in names:
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                answer = requests.request(method, f"{server.url}/{prefix}{name}", timeout=SECONDS)
                assert answer.status_code in (204, 400, 404, 405), (method, prefix, name)
                assert kept.read_bytes() not in answer.content
    assert str(place) not in requests.get(f"{server.url}/", timeout=SECONDS).text
    requests.delete(f"{server.url}/feedback/{key}", timeout=SECONDS)


class Owner(ThreadingHTTPServer):
    """The owner's address: it notes what it is sent, and answers with a status."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.got.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(owner.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        owner = self
        self.got: list[bytes] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = tls.wrap_socket(self.socket, server_side=True)


def test_a_photo_is_delivered_to_an_https_address(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with Owner(tls) as owner:
        threading.Thread(target=owner.serve_forever, daemon=True).start()
        address = f"https://localhost:{owner.server_port}/in"
        trust = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        server = start_server(**bears_environment(APP_FEEDBACK=address), **trust)
        server.wait_for("ready after")
        answer = give(server.url)
        assert (answer.status_code, answer.json()) == (201, {"key": ""})
        assert b'name="label"\r\n\r\nblack' in owner.got[0] and b"\xff\xd8\xff" in owner.got[0]
        for status in (302, 404, 500):
            owner.status = status
            assert give(server.url).json()["code"] == "fetch-failed"
        assert len(owner.got) == 4
        owner.shutdown()
    assert give(server.url).json()["code"] == "fetch-failed"


@pytest.mark.parametrize(
    "name", [path.name for path in IMAGES if path.name[0] in "efghjk" and path.suffix != ".txt"]
)
def test_the_picture_is_the_one_that_the_network_sees(bears: ServerProcess, name: str) -> None:
    data = image_bytes(name)
    answer = requests.post(
        f"{bears.url}/picture", data=data, headers={"Content-Type": "image/x"}, timeout=SECONDS
    )
    assert answer.headers["content-type"] == "image/jpeg"
    seen, expected = Image.open(io.BytesIO(answer.content)), decode(data)
    assert seen.size == expected.size
    differences = np.abs(np.asarray(seen, np.float32) - np.asarray(expected, np.float32))
    assert differences.mean() < 8  # of 255: it is a JPEG


def test_the_photos_of_the_proof_that_are_most_alike_are_shown(
    start_server: Callable[..., ServerProcess], v1_predictions: dict[str, np.ndarray], tmp_path: Path
) -> None:
    proof = write_proof(tmp_path, v1_predictions)
    first = json.loads(Path(proof).read_text())["photos"][0]
    server = start_server(**bears_environment(APP_PROOF_URL=proof, APP_SHOW_PROOF="true", APP_EXIF="ignore"))
    server.wait_for("ready after")
    answer = requests.post(
        f"{server.url}/nearest", files={"file": image_bytes(first["name"])}, timeout=SECONDS
    )
    nearest = answer.json()
    assert len(nearest) == min(3, len(json.loads(Path(proof).read_text())["photos"]))
    assert nearest[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert nearest[0]["label"] == BEARS[int(np.argmax(first["probabilities"]))]
    assert nearest[0]["image"].startswith("data:image/jpeg;base64,")
    similarities = [photo["similarity"] for photo in nearest]
    assert similarities == sorted(similarities, reverse=True)

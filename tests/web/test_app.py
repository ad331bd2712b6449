"""The HTTP contract, against a real server process."""

import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from app.fetching.download import cache_path
from app.settings import MODELS
from tests.conftest import (
    BEARS,
    DATA,
    IMAGES,
    SECONDS,
    V1_CHECKPOINT,
    ServerProcess,
    bears_environment,
    image_bytes,
)
from tests.http_client import assert_problem, raw
from tests.http_server import Handler, send, serving

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--\r\n'
PHOTO = image_bytes("a05_640x480.jpg")


def test_an_upload_is_answered_with_all_classes_the_likeliest_first(
    bears: ServerProcess, v1_predictions: dict[str, np.ndarray]
) -> None:
    answer = bears.post(PHOTO).json()
    expected = v1_predictions["a05_640x480.jpg"]
    assert answer.keys() == {"result", "confidence", "familiarity", "unsure", "predictions"}
    assert answer["result"] == BEARS[expected.argmax()] == answer["predictions"][0]["label"]
    assert answer["confidence"] == pytest.approx(expected.max(), abs=1e-4)
    assert [row["score"] for row in answer["predictions"]] == pytest.approx(sorted(expected)[::-1], abs=1e-4)
    assert (answer["unsure"], answer["familiarity"]) == (False, None)


@pytest.mark.fault("U24", "U29")
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_every_awkward_picture_is_answered(bears: ServerProcess, path: Path) -> None:
    answer = bears.post(path.read_bytes(), path.name)
    assert answer.status_code == 200
    assert answer.json()["result"] in BEARS


@pytest.mark.fault("U03", "U19", "U36", "U37")
def test_the_name_of_the_field_and_of_the_file_do_not_matter(bears: ServerProcess) -> None:
    for field, name in (
        ("image", "x.txt"),
        ("füßchen", "../../etc/passwd"),
        ("file", "<script>" + "x" * 10_000),
    ):
        answer = requests.post(
            f"{bears.url}/analyze", files={field: (name, PHOTO, "text/plain")}, timeout=SECONDS
        )
        assert answer.status_code == 200
        assert "script" not in answer.text


@pytest.mark.fault("U06")
def test_a_raw_image_body_is_an_upload(bears: ServerProcess) -> None:
    answer = requests.post(
        f"{bears.url}/analyze", PHOTO, headers={"Content-Type": "image/jpeg"}, timeout=SECONDS
    )
    assert answer.json() == bears.post(PHOTO).json()


@pytest.mark.fault("U01", "U02", "U04", "U05", "U06", "U07", "U08", "U10", "U18", "U20")
@pytest.mark.parametrize(
    ("request_parts", "status", "code"),
    [
        ({"files": {"file": ("x.jpg", b"")}}, 400, "empty-file"),
        ({"files": {"file": ("", b"")}}, 400, "no-file"),
        ({"files": {"other": (None, "text")}}, 400, "no-file"),
        ({"files": [("a", ("a.jpg", PHOTO)), ("b", ("b.jpg", PHOTO))]}, 400, "too-many-files"),
        ({"files": [("f", (f"{i}.jpg", b"x")) for i in range(9)]}, 400, "too-many-files"),
        ({"files": [("f", (None, "x")) for _ in range(99)]}, 400, "too-many-parts"),
        ({"files": {"file": (None, "x" * 2_000_000)}}, 400, "field-too-large"),
        ({"data": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed-multipart"),
        (
            {"data": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            400,
            "malformed-multipart",
        ),
        ({"data": PART[:-5], "headers": FORM}, 400, "malformed-multipart"),
        ({"data": PART.replace(b"Content-D", b"D"), "headers": FORM}, 400, "malformed-multipart"),
        (
            {"data": PART, "headers": {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}},
            400,
            "malformed-multipart",
        ),
        ({"json": {"file": "x"}}, 415, "unsupported-media-type"),
        ({"data": PHOTO}, 415, "unsupported-media-type"),
        ({"data": {"file": "x"}}, 415, "unsupported-media-type"),
        ({"files": {"file": ("photo.jpg", b"<html>")}}, 415, "unrecognised-image"),
        ({"files": {"file": ("photo.jpg", b"%PDF-1.4")}}, 415, "format-not-allowed"),
        ({"files": {"file": ("photo.jpg", PHOTO[:30000])}}, 422, "truncated-image"),
        ({"files": {"file": ("photo.jpg", b"x" * 10_500_000)}}, 413, "payload-too-large"),
        ({"files": {"file": ("photo.jpg", b"x" * 10_000_001)}}, 413, "payload-too-large"),
        ({"files": {"file": ("photo.jpg", b"x" * 10_000_000)}}, 415, "unrecognised-image"),
        (
            {
                "data": iter([*[b"x" * 1_000_000] * 10, b"x" * 100_000]),
                "headers": {"Content-Type": "image/png"},
            },
            413,
            "payload-too-large",
        ),
    ],
)
def test_an_invalid_upload_is_refused_with_its_status_and_code(
    bears: ServerProcess, request_parts: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(requests.post(f"{bears.url}/analyze", timeout=SECONDS, **request_parts), status, code)
    assert bears.post(PHOTO).status_code == 200


@pytest.mark.fault("U11", "H04")
def test_a_declared_length_over_the_limit_is_refused_before_the_body(bears: ServerProcess) -> None:
    head = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999\r\n"
    answer = raw(bears, head + b"Expect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload-too-large" in answer


@pytest.mark.parametrize("path", ["/analyze", "/nowhere"])
def test_a_body_that_nobody_wants_is_not_read_to_its_end(bears: ServerProcess, path: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = raw(bears, head.encode() + b"5\r\nhello\r\n")  # and no end: the server closes
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"connection: close" in answer.lower()


def test_what_is_no_http_is_a_problem_too(bears: ServerProcess) -> None:
    assert b'"code": "bad-request"' in raw(bears, b"hello\r\n\r\n")
    large = raw(bears, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000)
    assert large.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in large


@pytest.mark.fault("U13")
def test_a_client_that_leaves_in_the_middle_is_one_line_in_the_log(bears: ServerProcess) -> None:
    place = urlsplit(bears.url)
    with socket.create_connection((place.hostname, place.port), timeout=SECONDS) as client:
        client.sendall(
            b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nabc"
        )
    bears.wait_for("POST /analyze 0 client-disconnect")
    assert "Traceback" not in "".join(bears.lines)


@pytest.mark.fault("U13")
def test_a_client_that_leaves_while_its_photo_is_looked_at_is_one_line_too(bears: ServerProcess) -> None:
    """It resets its connection: one that only ends its side may still be waiting for the answer."""
    place, photo = urlsplit(bears.url), image_bytes("b01_12mp_3000x4000.jpg")  # a tenth of a second to decode
    head = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += f"Content-Length: {len(photo)}\r\n\r\n"
    with socket.create_connection((place.hostname, place.port), timeout=SECONDS) as client:
        client.sendall(head.encode() + photo)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bears.wait_for("POST /analyze 0 client-disconnect")
    assert bears.post(PHOTO).status_code == 200


def test_unknown_addresses_and_methods_are_problems_too(bears: ServerProcess) -> None:
    assert_problem(requests.get(f"{bears.url}/nowhere", timeout=SECONDS), 404, "not-found")
    assert_problem(requests.get(f"{bears.url}/static/nothing.js", timeout=SECONDS), 404, "not-found")
    refused = requests.get(f"{bears.url}/analyze", timeout=SECONDS)
    assert_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "OPTIONS, POST"


def test_health_readiness_model_and_metrics_are_told(bears: ServerProcess) -> None:
    assert requests.get(f"{bears.url}/healthz", timeout=SECONDS).json() == {"status": "ok"}
    assert requests.get(f"{bears.url}/readyz", timeout=SECONDS).json() == {"phase": "ready", "percent": 100}
    card = requests.get(f"{bears.url}/model", timeout=SECONDS).json()
    assert (card["architecture"], card["classes"], card["fastai"]) == ("squeezenet1_1", list(BEARS), 1)
    bears.post(IMAGES[0].read_bytes())
    bears.post(b"no picture")
    metrics = requests.get(f"{bears.url}/metrics", timeout=SECONDS).text
    assert re.search(r'fastai_now_requests_total\{code="unrecognised-image",status="415"\} \d', metrics)
    assert 'fastai_now_stage_seconds_count{stage="engine"}' in metrics
    names = set(re.findall(r"^# HELP (\w+)", metrics, re.M))
    assert {name for name in names if not name.startswith(("fastai_now_", "process_"))} == set()
    assert "process_resident_memory_bytes" in names or sys.platform != "linux"


def test_the_page_and_its_parts_are_sent_with_a_strict_policy(bears: ServerProcess) -> None:
    page = requests.get(bears.url, timeout=SECONDS)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for part in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert requests.get(bears.url + part, timeout=SECONDS).status_code == 200
    assert not re.search(r"https?://", page.text)  # nothing comes from elsewhere


def test_while_the_model_is_coming_the_server_says_so_and_then_answers(
    start_server: Callable[..., ServerProcess],
) -> None:
    content = V1_CHECKPOINT.read_bytes()
    with HeldDownload(content) as held:
        link = f"{held.url}/stage-2.pth"
        server = start_server(**bears_environment(APP_MODEL_URL=link))
        server.wait_for("downloading")
        assert requests.get(f"{server.url}/healthz", timeout=SECONDS).status_code == 200
        deadline = time.monotonic() + SECONDS
        while True:
            waiting = requests.get(f"{server.url}/readyz", timeout=SECONDS)
            assert waiting.status_code == 503
            if waiting.json()["bytes"] == len(content) // 2 or time.monotonic() > deadline:
                break  # all that is sent has arrived
        assert waiting.json() == {
            "phase": "downloading",
            "percent": 49,
            "bytes": len(content) // 2,
            "total": len(content),
        }
        assert int(waiting.headers["retry-after"]) > 0
        refused = server.post(PHOTO)
        assert "downloading, 49 %" in assert_problem(refused, 503, "model-loading")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        held.release()
        server.wait_for("ready after")
        assert server.post(PHOTO).json()["result"] == "teddys"
        cache_path(link, MODELS).unlink()


class HeldDownload:
    """A host that sends half of a file and the rest when it is let."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.release_event = threading.Event()
        self.release = self.release_event.set

    def answer(self, handler: Handler) -> None:
        half = len(self.content) // 2
        send(handler, self.content[:half], length=len(self.content))
        handler.wfile.flush()
        assert self.release_event.wait(SECONDS)
        handler.wfile.write(self.content[half:])

    def __enter__(self) -> "HeldDownload":
        self.context = serving(self.answer)
        self.url, _ = self.context.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self.release()
        self.context.__exit__(*failure)


def test_the_stored_list_of_pictures_is_what_is_tested() -> None:
    assert json.loads((DATA / "v1" / "predictions.json").read_text()).keys() == {path.name for path in IMAGES}

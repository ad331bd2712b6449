"""Every request of README, /api and /openapi.json, made over a real connection as it is documented."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.conftest import BEARS, ROOT, SECONDS, ServerProcess, bears_environment, image_bytes
from tests.http_client import raw
from tests.http_server import send, serving

PHOTO = image_bytes("a05_640x480.jpg")
FORM, BODY = {"files": {"file": PHOTO}}, {"data": PHOTO, "headers": {"Content-Type": "image/jpeg"}}
JSON = {"json": {"image": base64.b64encode(PHOTO).decode()}}
REQUESTS = {  # how each is made; those that take a photo in every documented way
    "GET /": [{}],
    "GET /api": [{}],
    "GET /healthz": [{}],
    "GET /readyz": [{}],
    "GET /model": [{}],
    "GET /metrics": [{}],
    "GET /openapi.json": [{}],
    "GET /analyze": [{"params": {"url": "IMAGE"}}],
    "POST /analyze": [FORM, BODY, JSON, {"files": {"url": (None, "IMAGE")}}, {"data": {"url": "IMAGE"}}],
    "POST /picture": [FORM, BODY, JSON],
    "POST /explain": [FORM, BODY, JSON, {**FORM, "params": {"label": BEARS[0]}}],
}


@pytest.fixture(scope="module")
def open_server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A ready server that may fetch images from this machine."""
    environment = bears_environment(APP_ALLOW_URL="true", LOOPBACK="1")
    server = start_server(module="tests.instrumented", **environment)
    server.wait_for("ready after")
    return server


@pytest.fixture(scope="module")
def link() -> Iterator[str]:
    """A link to the photo on a host of this machine."""
    with serving(lambda handler: send(handler, PHOTO)) as (url, _):
        yield f"{url}/photo.jpg"


def documented(server: ServerProcess) -> set[str]:
    """The requests that the documents name."""
    api = requests.get(f"{server.url}/api", timeout=SECONDS).text
    text = api + "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/api.md"))
    named = {f"{method} {path}" for method, path in re.findall(r"\b(GET|POST) (/[a-z.]*)", text)}
    paths = requests.get(f"{server.url}/openapi.json", timeout=SECONDS).json()["paths"]
    return named | {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def filled(options: Any, link: str) -> Any:
    """The options of a request with the link in the place of IMAGE."""
    if isinstance(options, dict):
        return {name: filled(value, link) for name, value in options.items()}
    if isinstance(options, tuple):
        return tuple(filled(value, link) for value in options)
    return link if options == "IMAGE" else options


@pytest.mark.fault("H23")
def test_every_documented_request_is_tried_here(open_server: ServerProcess) -> None:
    assert documented(open_server) == REQUESTS.keys()


@pytest.mark.fault("H23")
@pytest.mark.parametrize("name", REQUESTS)
def test_a_documented_request_is_answered(open_server: ServerProcess, link: str, name: str) -> None:
    method, path = name.split()
    answers = []
    for options in REQUESTS[name]:
        answer = requests.request(method, open_server.url + path, timeout=SECONDS, **filled(options, link))
        assert answer.status_code == 200, answer.text
        assert answer.content
        answers.append(answer)
    if method == "GET":
        head = requests.head(answers[0].request.url or "", timeout=SECONDS)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == answers[0].headers["content-type"]
    if path == "/analyze":
        assert {answer.json()["result"] for answer in answers} == {"teddys"}


@pytest.mark.fault("H23")
def test_a_photo_by_its_link_is_answered_as_when_it_is_uploaded(
    open_server: ServerProcess, link: str
) -> None:
    request = f"GET /analyze?url={link} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, body = raw(open_server, request.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == open_server.post(PHOTO).json()
    assert not [line for line in open_server.lines if "Traceback" in line or "client-disconnect" in line]

"""Photos as real clients wrap them: served, or refused with the cause."""

import asyncio
import base64
import json
import random
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import requests

from app.web.wrappings import decode_base64, looks_like_image
from tests.conftest import DATA, SECONDS, ServerProcess, bears_environment, image_bytes
from tests.http_client import assert_problem

PHOTO = image_bytes("a05_640x480.jpg")
BASE64 = base64.b64encode(PHOTO).decode()
URL_SAFE = base64.urlsafe_b64encode(PHOTO).decode().rstrip("=")


def ask(server: ServerProcess, **options: Any) -> requests.Response:
    return requests.post(f"{server.url}/analyze", timeout=SECONDS, **options)


def part(headers: str, body: bytes = PHOTO) -> dict[str, Any]:
    """A form with one part, whose headers are these."""
    form = f"--b\r\nContent-Disposition: form-data; {headers}\r\n\r\n".encode() + body + b"\r\n--b--\r\n"
    return {"data": form, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


@pytest.mark.fault("H24")
@pytest.mark.parametrize(
    "options",
    [
        part('name="file"\r\nContent-Type: image/jpeg'),
        part('name="file"\r\nContent-Type: application/octet-stream'),
        part('name="file"'),
        part('name="photo"; filename=""'),
        part("name=\"file\"; filename*=UTF-8''b%C3%A4r.jpg"),
        {"data": PHOTO, "headers": {"Content-Type": "application/octet-stream"}},
        {"json": {"image": BASE64}},
        {"json": {"name": "bear", "image": f"data:image/jpeg;base64,{BASE64}"}},
        {"json": {"instance": URL_SAFE}},
        {
            "data": json.dumps({"image": f"data:image/jpeg;base64,{BASE64}"})
            .replace("+", "\\u002B")
            .replace("=", "\\u003d"),
            "headers": {"Content-Type": "application/json"},
        },
        {"json": {"file": "\n".join(textwrap.wrap(BASE64, 76))}},
        {
            "data": json.dumps({"photo": BASE64}).replace("/", "\\/"),
            "headers": {"Content-Type": "application/json"},
        },
    ],
    ids=[
        "a kind without a name",
        "octet-stream without a name",
        "neither name nor kind",
        "an empty name",
        "a name in UTF-8",
        "an octet-stream",
        "base64 in JSON",
        "a data URL in JSON",
        "base64 for URLs",
        "a data URL of .NET",
        "base64 in lines",
        "base64 of PHP",
    ],
)
def test_a_photo_is_answered_in_whatever_wrapping(bears: ServerProcess, options: dict[str, Any]) -> None:
    answer = ask(bears, **options)
    assert answer.status_code == 200, answer.text
    assert answer.json() == bears.post(PHOTO).json()


@pytest.mark.fault("H24")
@pytest.mark.parametrize(
    ("options", "status", "code", "cause"),
    [
        ({"files": {"file": (None, "[object Object]")}}, 400, "no-file", "not a File"),
        ({"files": {"file": (None, "data:image/png;base64,iVBORw0KGgo=")}}, 400, "no-file", "data URL"),
        ({"files": {"file": (None, BASE64[:5000])}}, 400, "no-file", "base64"),
        ({"files": {"file": (None, BASE64 * 2)}}, 400, "field-too-large", "base64"),
        ({"files": {"file": (None, "file:///data/user/0/cache/1.jpg")}}, 400, "no-file", "on your device"),
        (
            {"data": PHOTO, "headers": {"Content-Type": "multipart/form-data"}},
            400,
            "malformed-multipart",
            "boundary",
        ),
        ({"json": {"image": "x"}}, 415, "unsupported-media-type", "base64"),
        ({"json": {"image": 5}}, 415, "unsupported-media-type", "base64"),
        ({"json": {"image": [[[]]] * 99}}, 415, "unsupported-media-type", "base64"),
        ({"json": {str(number): "x" for number in range(999)}}, 415, "unsupported-media-type", "base64"),
        (
            {"data": b'{"image":' + b'{"a":' * 99_999, "headers": {"Content-Type": "application/json"}},
            415,
            "unsupported-media-type",
            "base64",
        ),
        ({"json": [BASE64]}, 415, "unsupported-media-type", "base64"),
        ({"json": {"a": BASE64, "b": BASE64}}, 415, "unsupported-media-type", "base64"),
        ({"json": {"url": {"a": "\\"}}}, 415, "unsupported-media-type", "base64"),
        (
            {"data": PHOTO, "headers": {"Content-Type": "application/json"}},
            415,
            "unsupported-media-type",
            "base64",
        ),
        ({"json": {"image": ""}}, 400, "empty-file", "empty"),
        ({"json": {"image": "aGVsbG8="}}, 415, "unrecognised-image", "5 bytes"),
    ],
)
def test_a_wrapping_that_cannot_be_a_photo_is_named(
    bears: ServerProcess, options: dict[str, Any], status: int, code: str, cause: str
) -> None:
    assert cause in assert_problem(ask(bears, **options), status, code)["detail"]


def many(server: ServerProcess, files: list[tuple[str, bytes]]) -> requests.Response:
    return ask(server, params={"many": "1"}, files=[("file", file) for file in files])


@pytest.mark.fault("U05")
def test_several_files_get_a_list_in_their_order(bears: ServerProcess) -> None:
    photos = [image_bytes(name) for name in ("a00_224x224.jpg", "a05_640x480.jpg")]
    files = [("1.jpg", photos[0]), ("2.txt", b"no photo"), ("3.jpg", photos[1]), ("4.jpg", photos[0])]
    answer = many(bears, files)
    assert answer.status_code == 200
    first, refused, *others = answer.json()
    assert [first, *others] == [bears.post(photo).json() for photo in (photos[0], photos[1], photos[0])]
    assert (refused["status"], refused["code"]) == (415, "unrecognised-image")
    assert [each["result"] for each in many(bears, files[:1]).json()] == [first["result"]]
    assert_problem(many(bears, [("x.jpg", b"x")] * 21), 400, "too-many-parts")
    assert_problem(ask(bears, params={"many": "1"}, files={"other": (None, "x")}), 400, "no-file")
    assert (
        "many=1"
        in assert_problem(ask(bears, files=[("a", PHOTO), ("b", PHOTO)]), 400, "too-many-files")["detail"]
    )


def test_each_of_several_files_counts_for_the_rate_limit(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(**bears_environment(APP_RATE_LIMIT="3"))
    server.wait_for("ready after")
    answers = many(server, [("x.jpg", PHOTO)] * 5).json()
    assert [each.get("code") for each in answers] == [None, None, None, "rate-limited", "rate-limited"]


def test_base64_is_decoded_as_the_standard_library_does_whatever_its_form() -> None:
    some = random.Random(2026)
    for _ in range(30):
        data = some.randbytes(some.choice([0, 1, 2, 3, 1000, some.randrange(1_000_000)]))
        text = some.choice([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])(data)
        text = some.choice([b"", b"data:image/png;base64,"]) + (
            text.rstrip(b"=\n") if some.random() < 0.5 else text
        )
        assert asyncio.run(decode_base64(text)) == data
        escaped = json.dumps(text.decode()).replace("/", "\\/").replace("+", "\\u002B")[1:-1].encode()
        assert asyncio.run(decode_base64(memoryview(escaped))) == data
    for text in (b"a", b"\x00\x00", b"data:image/png,abc", "é".encode(), b"ab=c=", b"[object Object]"):
        assert asyncio.run(decode_base64(text)) is None


def test_the_first_bytes_tell_the_accepted_formats() -> None:
    seen = set()
    for path in (DATA / "images").iterdir():
        if looks_like_image(path.read_bytes()):
            seen.add(path.suffix)
    assert seen >= {".jpg", ".png", ".gif", ".bmp", ".webp"}
    for text in (b"", b"hello", b"BM is a car maker's beginning", b"II. chapter", b"RIFF of a guitar"):
        assert not looks_like_image(text)

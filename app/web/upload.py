"""The photos of a request: the files of a form, a raw body, base64 in JSON, or the image of a link."""

import asyncio
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from app.errors import BadRequest, UnsupportedMedia, plain
from app.settings import Settings
from app.web.multipart import MAX_FIELD, MAX_PARTS, Form, read_form
from app.web.problems import too_large
from app.web.wrappings import decode_base64

FORM_OVERHEAD: Final = 64 * 1024  # bytes that a form may have around its file: boundaries, other fields
RAW: Final = ("image/", "application/octet-stream")  # kinds of bodies that are the photo
MAX_MEMBERS: Final = 200  # of a JSON object: commas, brackets and quotation marks
MEMBERS: Final = ("image", "file", "photo")  # of JSON, in the order in which they are looked for


def max_body(settings: Settings) -> int:
    """Return the most bytes of a request body: a file of the allowed size, and the form around it."""
    return settings.max_upload_mb * 1_000_000 + FORM_OVERHEAD


async def read_photo(request: Request) -> bytes:
    """Return the bytes of the one photo of a request.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia, and the errors of `fetch_image`.
    """
    settings = request.state.service.settings
    limit = settings.max_upload_mb * 1_000_000
    form = await read_body(request)
    if form.url and not form.files and settings.allow_url:
        # off by default, and importing aiohttp would be a fifth of the start
        from app.fetching.image import AGENT, fetch_image, refused

        if AGENT in request.headers.get("via", ""):  # a link to this server that leads to this server
            raise refused()
        async with request.state.service.fetching:
            return await fetch_image(form.url, limit)
    if not form.files:
        cause = form.cause or "Choose a photo first. In curl: -F file=@photo.jpg"
        raise BadRequest(f"There is no file. {cause}", "no-file")
    if len(form.files[0]) > limit:
        raise too_large(limit)
    return form.files[0]


async def read_photos(request: Request) -> list[bytes]:
    """Return the bytes of all photos of a form.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia.
    """
    if _kind(request) != "multipart/form-data":
        return [await read_photo(request)]
    form = await read_form(request.headers["content-type"], request.stream(), MAX_PARTS)
    if not form.files:
        raise BadRequest(f"There is no file. {form.cause or 'Choose photos first.'}", "no-file")
    return form.files


async def read_body(request: Request) -> Form:
    """Return the file of a request, if there is one, and its link.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia.
    """
    kind, allow_url = _kind(request), request.state.service.settings.allow_url
    if request.method in ("GET", "HEAD"):
        return Form([], request.query_params.get("url", ""))
    if kind == "multipart/form-data":
        return await read_form(request.headers["content-type"], request.stream())
    if kind.startswith(RAW):
        return Form([await request.body()], "")
    if kind == "application/json":
        return await read_json(await request.body())
    if kind == "application/x-www-form-urlencoded" and allow_url:
        return Form([], parse_fields(await request.body()).get("url", ""))
    raise UnsupportedMedia(
        f"The content type is '{plain(kind, 80)}'; multipart/form-data with a file, or image/* with the "
        "photo as the body, was expected: curl -F file=@photo.jpg",
        "unsupported-media-type",
    )


def _kind(request: Request) -> str:
    """Return the media type of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(body: bytes) -> Form:
    """Return the photo that JSON has as base64 or as a data URL, or the link in its `url`.

    Raises UnsupportedMedia.
    """
    try:
        members = await asyncio.to_thread(_members, body)  # some milliseconds
        if link := members.get("url"):
            return Form([], msgspec.json.decode(bytes(link[:MAX_FIELD]), type=str))
        texts = {name: text for name, text in members.items() if bytes(text[:1]) == b'"'}
        candidates = [texts[name] for name in MEMBERS if name in texts][:1] or list(texts.values())
        photo = await decode_base64(candidates[0][1:-1]) if len(candidates) == 1 else None
    except msgspec.DecodeError:
        photo = None
    if photo is None:
        raise UnsupportedMedia(
            'The JSON has no photo; {"image": "..."} with the photo as base64 or as a data URL was expected, '
            "or a form: curl -F file=@photo.jpg",
            "unsupported-media-type",
        )
    return Form([photo], "")


def _members(body: bytes) -> dict[str, memoryview]:
    """Return the members of a JSON object as they are written. Raises DecodeError, also for very many."""
    if any(body.count(mark) > MAX_MEMBERS for mark in (b'"', b",", b"[", b"{")):
        raise msgspec.DecodeError
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return {name: memoryview(raw) for name, raw in members.items()}


def parse_fields(body: bytes) -> dict[str, str]:
    """Parse a urlencoded form; of several fields with one name the first counts. Raises BadRequest."""
    if len(body) > MAX_FIELD or body.count(b"&") >= MAX_PARTS:
        raise BadRequest("The form is too large; one field url was expected.", "field-too-large")
    return dict(reversed(parse_qsl(body.decode("utf-8", "replace"))))

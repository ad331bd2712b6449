"""The photo of a request: the file of a form, a raw body, or the image that a link leads to."""

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from app.errors import BadRequest, UnsupportedMedia
from app.settings import Settings
from app.web.multipart import MAX_FIELD, MAX_PARTS, read_form
from app.web.problems import too_large

FORM_OVERHEAD: Final = 64 * 1024  # bytes that a form may have around its file: boundaries, other fields


def max_body(settings: Settings) -> int:
    """Return the most bytes of a request body: a file of the allowed size, and the form around it."""
    return settings.max_upload_mb * 1_000_000 + FORM_OVERHEAD


async def read_photo(request: Request) -> bytes:
    """Return the bytes of the photo of a request.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia, and the errors of `fetch_image`.
    """
    settings = request.state.service.settings
    limit = settings.max_upload_mb * 1_000_000
    data, url = await read_body(request)
    if url and data is None and settings.allow_url:
        # off by default, and importing aiohttp would be a fifth of the start
        from app.fetching.image import AGENT, fetch_image, refused

        if AGENT in request.headers.get("via", ""):  # a link to this server that leads to this server
            raise refused()
        async with request.state.service.fetching:
            return await fetch_image(url, limit)
    if data is None:
        raise BadRequest("There is no file; choose a photo first. In curl: -F file=@photo.jpg", "no-file")
    if len(data) > limit:
        raise too_large(limit)
    return data


async def read_body(request: Request) -> tuple[bytes | None, str]:
    """Return the file of a request, if there is one, and the text of its field `url`.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in ("GET", "HEAD"):
        return None, request.query_params.get("url", "")
    if kind == "multipart/form-data":
        return await read_form(request.headers["content-type"], request.stream())
    if kind.startswith("image/"):
        return await request.body(), ""
    if kind == "application/x-www-form-urlencoded" and request.state.service.settings.allow_url:
        return None, parse_fields(await request.body()).get("url", "")
    raise UnsupportedMedia(
        f"The content type is '{kind[:80]}'; multipart/form-data with a file, or image/* with the photo "
        "as the body, was expected: curl -F file=@photo.jpg",
        "unsupported-media-type",
    )


def parse_fields(body: bytes) -> dict[str, str]:
    """Parse a urlencoded form; of several fields with one name the first counts. Raises BadRequest."""
    if len(body) > MAX_FIELD or body.count(b"&") >= MAX_PARTS:
        raise BadRequest("The form is too large; one field url was expected.", "field-too-large")
    return dict(reversed(parse_qsl(body.decode("utf-8", "replace"))))

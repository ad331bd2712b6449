"""The form of an answer: JSON for programs, a page for a browser that submits the form by itself.

A failure is an RFC 9457 problem, or a page with the same sentence. Nothing else chooses a form.
"""

import html
import json
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from app.errors import Code, PayloadTooLarge, RequestError

TYPE: Final = "application/problem+json"
NONE: Final[Mapping[str, str]] = {}
VARIES: Final = {"vary": "Accept"}
CODES: Final[dict[int, Code]] = {404: "not-found", 405: "method-not-allowed"}

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="{server}/static/style.css">
</head>
<body>
<main>
  <h1>{title}</h1>
  <p role="alert">{detail}</p>
  <p><a href="{page}/">Back to the page</a></p>
  <p><small>{status} {code}, request {request_id}</small></p>
</main>
</body>
</html>
"""


class Problem(NamedTuple):
    """A failure: the HTTP status, a code from a closed set, a sentence for a person."""

    status: int
    code: Code
    detail: str
    request_id: str

    @property
    def title(self) -> str:
        """Return the name of the status."""
        return HTTPStatus(self.status).phrase

    def as_json(self) -> bytes:
        """Return the problem of RFC 9457; its type is `about:blank`, since the status says it."""
        members = {"type": "about:blank", "title": self.title, **self._asdict()}
        return json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")

    def as_page(self, server: str = "", page: str = "") -> bytes:
        """Return a page with the same members, and links to the paths of the server and of its page."""
        members = {"title": self.title, "server": server, "page": page, **self._asdict()}
        escaped = {name: html.escape(str(value)) for name, value in members.items()}
        return PAGE.format_map(escaped).encode("utf-8", "replace")


def wants_page(request: Request) -> bool:
    """Return whether a browser shows the answer as it is: it asks for HTML, and for no kind of JSON."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")]
    return "text/html" in kinds and not {"application/json", TYPE} & set(kinds)


def as_json(record: Struct | list[Any], headers: dict[str, str] | None = None) -> Response:
    """Return the fields of a record, or of each record of a list, as JSON."""
    return Response(msgspec.json.encode(record), headers=headers, media_type="application/json")


def as_prediction(request: Request, prediction: Struct, headers: Mapping[str, str] = NONE) -> Response:
    """Return a Prediction as JSON, or as a page where a browser asks."""
    if wants_page(request):
        page = request.state.pages.answer(prediction, language_of(request))
        return HTMLResponse(page, headers={"vary": "Accept, Accept-Language", **headers})
    return as_json(prediction, {**VARIES, **headers})


def language_of(request: Request) -> str:
    """Return the language in which a request wants the page."""
    chosen, accepted = request.query_params.get("lang", ""), request.headers.get("accept-language", "")
    return request.state.pages.language(chosen, accepted)  # type: ignore[no-any-return]


def problem(
    request: Request, status: int, code: Code, detail: str, headers: MutableMapping[str, str] | None = None
) -> Response:
    """Return a failure as a problem, or as a page where a browser asks."""
    request.scope["code"] = code
    failure = Problem(status, code, detail, request.scope["request_id"])
    if wants_page(request):
        page = request.scope.get("root_path", "")
        server = request.scope.get("app_root_path", page)  # without an application's name
        response = Response(failure.as_page(server, page), status, headers, media_type="text/html")
    else:
        response = Response(failure.as_json(), status, headers, media_type=TYPE)
    response.headers.update(VARIES)
    response.headers["cache-control"] = "no-store"
    return response


async def failed_request(request: Request, error: RequestError) -> Response:
    """Return the problem of a RequestError."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"  # RFC 9110, 15.5.2
    return problem(request, error.status, error.code, str(error), headers)


async def failed_route(request: Request, error: HTTPException) -> Response:
    """Return the problem of an unknown address or method; answer OPTIONS, which every address has."""
    code = CODES.get(error.status_code, "bad-request")
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # the files of the page are mounted, and their 405 names no methods
        allowed = {*headers.pop("Allow", "GET, HEAD").split(", "), "OPTIONS"}
        headers["allow"] = ", ".join(sorted(allowed))
        if request.method == "OPTIONS":
            return Response(None, 204, headers)
    if not get_route_path(
        request.scope
    ):  # the path below which a proxy shows the server, without its slash; links are relative
        location = request.scope["path"].rpartition("/")[2] + "/"
        return Response(None, 308, {"location": location, "cache-control": "no-cache"})
    if request.scope["path"] == "*":  # RFC 9110, 9.3.7: OPTIONS of the server as a whole
        return Response(None, 204, {"allow": "GET, HEAD, OPTIONS, POST"})
    detail = {
        404: "There is nothing at this address; the page is at /, the API at POST /analyze.",
        405: f"{request.method} is not allowed at this address; the header Allow lists the methods that are.",
    }.get(error.status_code, error.detail)
    return problem(request, error.status_code, code, detail, headers)


HANDLERS: Final[Mapping[Any, Any]] = {RequestError: failed_request, HTTPException: failed_route}


async def unknown_method(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose method HTTP does not define; an ASGI application."""
    detail = "The method of the request is unknown; GET and POST are used here."
    await problem(Request(scope), 400, "bad-request", detail)(scope, receive, send)


def too_large(limit: int) -> PayloadTooLarge:
    """Return the refusal of an upload over `limit` bytes."""
    return PayloadTooLarge(
        f"The upload is over {limit / 1_000_000:.0f} MB, which is the limit here; send a smaller photo."
    )

"""What is around every request: an id, limits on what streams in, who else's pages may call (CORS), security
headers, one log line, a count; and the one form of every failure, RFC 9457.
"""

import logging
import secrets
import time
from collections.abc import Collection, MutableMapping
from http import HTTPMethod
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, RequestError, Unavailable
from app.logs import log_request
from app.metrics import Metrics
from app.web.problems import TYPE, Problem, wants_page

SECURITY: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}
PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key",
    "access-control-max-age": "600",  # seconds
}
EXPOSED: Final = "x-request-id, retry-after"
METHODS: Final = frozenset(HTTPMethod)
CODES: Final = {404: "not-found", 405: "method-not-allowed"}
SOON: Final = 5  # seconds, in which uploads that are under way will mostly have been read

logger = logging.getLogger(__name__)


class RequestMiddleware:
    """Around every request: an id, limits, headers, one log line, a count.

    `max_body` bytes a request, `max_uploading` bytes of all requests together, `origins` of pages elsewhere
    that may read the answers ("*": all).
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_body: int, max_uploading: int, origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body
        self._room = UploadBudget(max_uploading)
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = scope.setdefault("request_id", secrets.token_hex(8))
        # the files here are small: none is sent in parts, which is where the framework's errors are plain
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        start, status = time.monotonic(), 0
        body = _Body(scope, receive, self._max_body, self._room)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY | {"x-request-id": identity})
                self._add_cors_headers(Headers(scope=scope), status, headers)
                if not body.ended:
                    headers["connection"] = "close"  # or the rest of the body would be read, however long
            await send(message)

        try:
            app = self._app if scope["method"] in METHODS else unknown_method
            await app(scope, body.receive, send_marked)
        except ClientDisconnect:
            scope["code"] = "client-disconnect"
        except Exception:
            logger.exception("a mistake of the server in the request %s", identity)
            if status == 0:
                detail = "The server made a mistake; it is in its log under the request id."
                await problem(Request(scope), 500, "internal", detail)(scope, receive, send_marked)
        finally:
            body.close()
            status, code = scope.get("refused", (status, scope.get("code", "")))
            self._metrics.requests.labels(str(status), code).inc()
            path = scope.get("raw_path", b"").decode("latin-1")
            log_request(scope["method"], path, status, code, time.monotonic() - start, identity)

    def _add_cors_headers(self, asked: Headers, status: int, headers: MutableHeaders) -> None:
        """The headers by which a browser lets a page from elsewhere read the answer (the Fetch standard)."""
        if not self._origins:
            return
        headers.add_vary_header("Origin")
        origin = asked.get("origin", "")
        if not origin or not {origin, "*"} & set(self._origins):
            return
        headers["access-control-allow-origin"] = "*" if "*" in self._origins else origin
        headers["access-control-expose-headers"] = EXPOSED
        if status == 204 and "access-control-request-method" in asked:
            headers.update(PREFLIGHT)


class UploadBudget:
    """How many bytes of uploads are held in memory, of all requests together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self, count: int) -> None:
        """Take room for so many bytes more, or give it back. Raises Unavailable where there is none."""
        self._taken += count
        if self._taken > self._limit and count > 0:
            raise Unavailable("Too many uploads are under way; try again shortly.", retry_after=SOON)


class _Body:
    """A request's body as it streams in: `receive` raises PayloadTooLarge as soon as it is, or says it will
    be, over the limit; `ended` once all of it has been received.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, room: UploadBudget) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._room = room
        self._declared = headers.get("content-length", "0")
        self._received = 0
        self.ended = self._declared == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """The next message of the body."""
        if int(self._declared) > self._limit:
            raise too_large(self._limit)
        message = await self._receive()
        count = len(message.get("body", b""))
        self._received += count
        self.ended = self.ended or not message.get("more_body", False)
        if self._received > self._limit:
            self._received -= count
            raise too_large(self._limit)
        self._room.take(count)
        return message

    def close(self) -> None:
        """The request is over: nothing of its body is held any more."""
        self._room.take(-self._received)


# --- failures: RFC 9457 ------------------------------------------------------------------------------------


def problem(
    request: Request, status: int, code: str, detail: str, headers: MutableMapping[str, str] | None = None
) -> Response:
    """An error answer: a problem, or a page where a browser asks."""
    request.scope["code"] = code
    failure = Problem(status, code, detail, request.scope["request_id"])
    if wants_page(request.headers.get("accept", "")):
        response = Response(failure.as_page(), status, headers, media_type="text/html")
    else:
        response = Response(failure.as_json(), status, headers, media_type=TYPE)
    response.headers["vary"] = "Accept"
    response.headers["cache-control"] = "no-store"
    return response


async def failed_request(request: Request, error: RequestError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"  # RFC 9110, 15.5.2
    return problem(request, error.status, error.code, str(error), headers)


async def failed_route(request: Request, error: HTTPException) -> Response:
    """No such address, or none for this method; OPTIONS is for all that there are."""
    code = CODES.get(error.status_code, "bad-request")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # the files of the page are mounted, and their 405 names no methods
        allowed = {*headers.pop("Allow", "GET, HEAD").split(", "), "OPTIONS"}
        headers["allow"] = ", ".join(sorted(allowed))
        if request.method == "OPTIONS":
            return Response(None, 204, headers)
    if request.scope["path"] == "*":  # RFC 9110, 9.3.7: of the server as a whole
        return Response(None, 204, {"allow": "GET, HEAD, OPTIONS, POST"})
    detail = {
        404: "There is nothing at this address; the page is at /, the API at POST /analyze.",
        405: f"{request.method} is not for this address.",
    }.get(error.status_code, error.detail)
    return problem(request, error.status_code, code, detail, headers)


async def unknown_method(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application for methods that HTTP does not have."""
    detail = "The method of the request is unknown; GET and POST are used here."
    await problem(Request(scope), 400, "bad-request", detail)(scope, receive, send)


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of an upload over `limit` bytes."""
    return PayloadTooLarge(
        f"The upload is over {limit / 1_000_000:.0f} MB, which is the limit here; send a smaller photo."
    )

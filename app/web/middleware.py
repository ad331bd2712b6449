"""Around every request: an id, limits on its body, CORS and security headers, one log line, one count."""

import logging
import secrets
import time
from collections.abc import Collection
from http import HTTPMethod
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Unavailable
from app.logs import log_request
from app.metrics import Metrics
from app.web.problems import problem, too_large, unknown_method

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
SOON: Final = 5  # seconds, within which most uploads under way will have been read

logger = logging.getLogger(__name__)


class RequestMiddleware:
    """The ASGI middleware around every request.

    `max_body` bytes a request and `max_uploading` bytes of all requests together are read; pages of
    `origins` may read the answers ("*": all pages).
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
        """Handle a request (the ASGI interface)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = scope.setdefault("request_id", secrets.token_hex(8))
        # no file is sent in parts: all are small, and the framework answers a wrong Range with plain text
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
                    headers["connection"] = "close"  # or the rest of the body would have to be read
            await send(message)

        try:
            app = self._app if scope["method"] in METHODS else unknown_method
            await app(scope, body.receive, send_marked)
        except ClientDisconnect:
            scope["code"] = "client-disconnect"
        except Exception:
            logger.exception("internal error in request %s", identity)
            if status == 0:
                detail = "Internal server error. The log has the details under this request id."
                await problem(Request(scope), 500, "internal", detail)(scope, receive, send_marked)
        finally:
            body.close()
            status, code = scope.get("refused", (status, scope.get("code", "")))
            self._metrics.requests.labels(str(status), code).inc()
            path = scope.get("raw_path", b"").decode("latin-1")
            log_request(scope["method"], path, status, code, time.monotonic() - start, identity)

    def _add_cors_headers(self, asked: Headers, status: int, headers: MutableHeaders) -> None:
        """Add the headers that let a page of another origin read the answer (Fetch standard)."""
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
    """The bytes of uploads that all requests together may hold in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self, count: int) -> None:
        """Take room for `count` bytes, or give it back if negative. Raises Unavailable if there is none."""
        self._taken += count
        if self._taken > self._limit and count > 0:
            raise Unavailable("Too many uploads are under way; try again shortly.", retry_after=SOON)


class _Body:
    """The body of a request, as it streams in; `ended` once all of it has been received."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, room: UploadBudget) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._room = room
        self._declared = headers.get("content-length", "0")
        self._received = 0
        self.ended = self._declared == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Return the next message. Raises PayloadTooLarge once the body is, or declares to be, too large."""
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
        """Give the room of the body back at the end of the request."""
        self._room.take(-self._received)

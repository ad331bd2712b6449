"""Around every request: an id, limits on its body, CORS and security headers, one log line, one count."""

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Sequence
from http import HTTPMethod
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.errors import TooManyRequests, Unavailable
from app.logs import log_request
from app.metrics import Metrics
from app.settings import Settings
from app.web.budget import SOON, Upload, UploadBudget
from app.web.hosts import frame_origins, path_prefix
from app.web.problems import problem, unknown_method
from app.web.upload import max_body

SECURITY: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors ",
}
PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key",
    "access-control-max-age": "600",  # seconds
}
EXPOSED: Final = "x-request-id, retry-after, x-model"
METHODS: Final = frozenset(HTTPMethod)
MAX_UPLOADING: Final = 64_000_000  # bytes of all uploads together, in memory: twenty as phones send them
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")  # of a path below which a proxy shows the server
RETRIED: Final = (Unavailable.code, TooManyRequests.code)
# refused clients whose next request is read each second: eleven that retry immediately would take a core
PER_SECOND: Final = 100
LONGEST_DELAY: Final = 0.25  # seconds: a proxy's connection may carry another client's request next

logger = logging.getLogger(__name__)


def around_requests(settings: Settings, metrics: Metrics) -> list[Middleware]:
    """Return the middleware of the application, the outermost first."""
    trusted, limit = settings.trusted_proxies, max_body(settings)
    requests = Middleware(
        RequestMiddleware,
        metrics=metrics,
        max_body=limit,
        max_uploading=max(MAX_UPLOADING, limit),
        origins=settings.cors_origins,
        frames=frame_origins(settings, os.environ),
        prefix=path_prefix(settings),
    )
    return [*([Middleware(TrustedProxies, trusted=trusted)] if trusted else []), requests]


class TrustedProxies:
    """The ASGI middleware that believes trusted proxies: X-Forwarded-For, -Proto, -Prefix, X-Request-Id."""

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self._app = ProxyHeadersMiddleware(app, list(trusted))  # type: ignore[arg-type]  # uvicorn's own ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (the ASGI interface)."""
        if scope["type"] == "http" and scope["client"] and scope["client"][0] in self._app.trusted_hosts:
            headers = Headers(scope=scope)
            identity, prefix = headers.get("x-request-id", ""), headers.get("x-forwarded-prefix", "")
            if REQUEST_ID.fullmatch(identity):
                scope["request_id"] = identity
            if PREFIX.fullmatch(prefix):
                scope["root_path"] = prefix.rstrip("/")
        await self._app(scope, receive, send)  # type: ignore[arg-type]


def _place(scope: Scope, prefix: str) -> None:
    """Place a request below the path `prefix`, as ASGI has it, whether the proxy took that off or not."""
    path = scope["path"]
    if path.startswith("/") and path != prefix and not path.startswith(f"{prefix}/"):
        scope["path"] = prefix + path
    scope["root_path"] = prefix


class RequestMiddleware:
    """The ASGI middleware around every request.

    `max_body` bytes a request and `max_uploading` bytes of all requests together are read; pages of
    `origins` may read the answers, and those of `frames` may show the page in a frame ("*": all pages). A
    proxy shows the server below the path `prefix`, unless it says another one.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body: int,
        max_uploading: int,
        origins: Collection[str] = (),
        frames: Collection[str] = (),
        prefix: str = "",
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body
        self._budget = UploadBudget(max_uploading)
        self._throttle = RetryThrottle()
        self._origins = origins
        self._prefix = prefix
        policy = SECURITY["content-security-policy"] + (" ".join(frames) or "'none'")
        self._security = SECURITY | {"content-security-policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (the ASGI interface)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = scope.setdefault("request_id", secrets.token_hex(8))
        _place(scope, scope.get("root_path") or self._prefix)
        # no file is sent in parts: all are small, and the framework answers a wrong Range with plain text
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        start, status, unfinished = time.monotonic(), 0, False
        upload = Upload(scope, receive, self._max_body, self._budget)

        async def send_marked(message: Message) -> None:
            nonlocal status, unfinished
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(self._security | {"x-request-id": identity})
                self._add_cors_headers(Headers(scope=scope), status, headers)
                if not upload.ended:
                    headers["connection"] = "close"  # or the rest of the body would have to be read
            elif scope.get("code") in RETRIED and upload.ended and not message.get("more_body", False):
                unfinished, message["more_body"] = True, True
            await send(message)

        try:
            await self._answer(scope, upload, send_marked)
        except ClientDisconnect:
            scope["code"] = "client-disconnect"
        except Exception:
            logger.exception("internal error in request %s", identity)
            if status == 0:
                detail = "Internal server error. The log has the details under this request id."
                await problem(Request(scope), 500, "internal", detail)(scope, receive, send_marked)
        finally:
            upload.close()
            status, code = scope.get("refused", (status, scope.get("code", "")))
            self._metrics.requests.labels(str(status), code).inc()
            path = scope.get("raw_path", b"").decode("latin-1")
            log_request(scope["method"], path, status, code, time.monotonic() - start, identity)
        if unfinished:  # the client has read all of the answer, but its next request is read after this
            await asyncio.sleep(self._throttle.delay(time.monotonic()))
            await send({"type": "http.response.body"})

    async def _answer(self, scope: Scope, upload: Upload, send: Send) -> None:
        """Hand the request to the application, unless its upload must give way to others."""
        app = self._app if scope["method"] in METHODS else unknown_method
        try:
            await app(scope, upload.receive, send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not upload.gave_way or task is None:
                raise
            task.uncancel()
            detail = "The upload was slow, and others need its room; try again shortly."
            headers = {"retry-after": str(SOON)}
            failure = problem(Request(scope), 503, Unavailable.code, detail, headers)
            await failure(scope, upload.receive, send)

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


class RetryThrottle:
    """A short delay for clients that retry immediately after a 503: PER_SECOND of them are read again."""

    def __init__(self) -> None:
        self._latest = 0.0

    def delay(self, now: float) -> float:
        """Return the seconds until the next request of a refused client is read."""
        self._latest = min(max(self._latest + 1 / PER_SECOND, now), now + LONGEST_DELAY)
        return self._latest - now

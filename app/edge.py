"""What is around every request: an id, a limit on the body as it streams, security headers, one log line, a
count; and the one form of every failure, RFC 9457.
"""

import logging
import secrets
import time
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, RequestError
from app.metrics import Metrics

CONTENT_POLICY: Final = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'"
CODES: Final = {404: "not-found", 405: "method-not-allowed"}

logger = logging.getLogger(__name__)


class Edge:
    """Around every request: an id, a limit on the body as it streams, security headers, one log line, a
    count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["request_id"] = secrets.token_hex(8)
        start, status = time.monotonic(), 0
        body = _Body(scope, receive, self._max_body)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["request_id"]
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["content-security-policy"] = CONTENT_POLICY
                if not body.ended:
                    headers["connection"] = "close"  # or the rest of the body would be read, however long
            await send(message)

        try:
            await self._app(scope, body.receive, send_marked)
        except ClientDisconnect:
            scope["code"] = "client-disconnect"
        except Exception:
            logger.exception("a mistake of the server in the request %s", scope["request_id"])
            if status == 0:
                detail = "The server made a mistake; it is in its log under the request id."
                await problem(Request(scope), 500, "internal", detail)(scope, receive, send_marked)
        finally:
            code = scope.get("code", "")
            self._metrics.requests.labels(str(status), code).inc()
            path = scope.get("raw_path", b"").decode("latin-1")[:200]  # still escaped, as it came
            seconds = time.monotonic() - start
            logger.info(
                "%s %s %d %s %.3fs %s", scope["method"], path, status, code, seconds, scope["request_id"]
            )


class _Body:
    """A request's body as it streams in: `receive` raises PayloadTooLarge as soon as it is, or says it will
    be, over the limit; `ended` once all of it has been received.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._declared = headers.get("content-length", "0")
        self._received = 0
        self.ended = self._declared == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """The next message of the body."""
        if int(self._declared) > self._limit:
            raise too_large(self._limit)
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.ended = self.ended or not message.get("more_body", False)
        if self._received > self._limit:
            raise too_large(self._limit)
        return message


# --- failures: RFC 9457 ------------------------------------------------------------------------------------


def problem(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """An error answer. `about:blank`: the status is the type; `code` tells more, from a closed set."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request.scope["request_id"],
    }
    request.scope["code"] = code
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def failed_request(request: Request, error: RequestError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return problem(request, error.status, error.code, str(error), headers)


async def failed_route(request: Request, error: HTTPException) -> Response:
    code = CODES.get(error.status_code, "bad-request")
    detail = {
        404: "There is nothing at this address; the page is at /, the API at POST /analyze.",
        405: f"{request.method} is not for this address.",
    }.get(error.status_code, error.detail)
    return problem(request, error.status_code, code, detail, dict(error.headers or {}))


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of an upload over `limit` bytes."""
    return PayloadTooLarge(
        f"The upload is over {limit / 1_000_000:.0f} MB, which is the limit here; send a smaller photo."
    )

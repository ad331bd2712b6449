"""The Starlette application: routes, lifespan, one error handler, and the limits at the edge."""

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, RequestError, StartupError, Unavailable, UnsupportedMedia
from app.form import read_form
from app.metrics import Metrics
from app.predictor import Predictor, open_predictor
from app.settings import Settings

VIEW: Final = Path(__file__).parent / "view"
FORM_OVERHEAD: Final = 64 * 1024  # what a multipart body may have around the file: boundaries, other fields
STARTING_RETRY: Final = 2  # seconds
CONTENT_POLICY: Final = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'"
CODES: Final = {404: "not-found", 405: "method-not-allowed"}

logger = logging.getLogger(__name__)


class Service:
    """What the requests share: the predictor once it is open, and until then how far opening has come."""

    def __init__(
        self, settings: Settings, metrics: Metrics, on_failure: Callable[[StartupError], None]
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self._on_failure = on_failure
        self._predictor: Predictor | None = None
        self.phase = "starting"
        self.percent: int | None = None

    @property
    def predictor(self) -> Predictor:
        """The open predictor. Raises Unavailable while there is none."""
        if self._predictor is None:
            percent = "" if self.percent is None else f", {self.percent} %"
            raise Unavailable(
                f"The model is not ready yet ({self.phase}{percent}); try again in a moment.",
                "model-loading",
                retry_after=STARTING_RETRY,
            )
        return self._predictor

    def report(self, phase: str, percent: int | None) -> None:
        """Hear how far opening has come."""
        if phase != self.phase:
            logger.info("%s", phase)
        self.phase, self.percent = phase, percent

    async def open(self) -> None:
        """Open the predictor; a failure is logged as one sentence and handed to `on_failure`."""
        start = time.monotonic()
        try:
            self._predictor = await open_predictor(self.settings, self.report, self.metrics)
        except Exception as error:  # an unforeseen one must not leave a server that waits for ever
            self.report("failed", None)
            if not isinstance(error, StartupError):
                logger.exception("the model could not be opened")
                error = StartupError(
                    f"the model could not be opened ({type(error).__name__}): a bug; please report it"
                )
            self._on_failure(error)
        else:
            self.report("ready", 100)
            logger.info("ready after %.2f s", time.monotonic() - start)

    async def close(self) -> None:
        """Let what is under way finish."""
        if self._predictor is not None:
            await self._predictor.close()


def create_app(settings: Settings, on_failure: Callable[[StartupError], None]) -> Starlette:
    """Build the application. It answers at once and opens the model in the background.

    `on_failure` is called once, from the event loop, if the model cannot be opened.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        service = Service(settings, metrics, on_failure)
        opening = asyncio.create_task(service.open())
        yield {"service": service}
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await service.close()

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/analyze", analyze, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/model", model),
            Route("/metrics", metrics_text),
            Mount("/static", StaticFiles(directory=VIEW / "static")),
        ],
        middleware=[Middleware(Edge, metrics=metrics, max_body=max_body(settings))],
        exception_handlers={
            RequestError: failed_request,  # type: ignore[dict-item]  # Starlette types them by Exception
            HTTPException: failed_route,  # type: ignore[dict-item]
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would build a link from the Host header
    return app


def max_body(settings: Settings) -> int:
    """The most bytes of a request body: a file of the allowed size, and what a form puts around it."""
    return settings.max_upload_mb * 1_000_000 + FORM_OVERHEAD


# --- the routes --------------------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    """GET /: the upload page."""
    return FileResponse(VIEW / "index.html")


async def analyze(request: Request) -> Response:
    """POST /analyze: a photo as the one file of a form, or as the raw body -> its Prediction as JSON."""
    predictor = request.state.service.predictor
    with predictor.slot():
        data = await read_upload(request)
        answer = asyncio.create_task(predictor.predict(data))
        # the body is read: all that may still come is that the client leaves
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return JSONResponse(dataclasses.asdict(answer.result()))
        finally:
            answer.cancel()
            leaving.cancel()


async def healthz(request: Request) -> Response:
    """GET /healthz: the process lives."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 once the model is open, before that 503 with the phase and percent of opening."""
    service = request.state.service
    progress = {"phase": service.phase, "percent": service.percent}
    if service.phase == "ready":
        return JSONResponse(progress)
    headers = {"retry-after": str(STARTING_RETRY)}
    return JSONResponse(progress, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def model(request: Request) -> Response:
    """GET /model: what is being served."""
    return JSONResponse(dataclasses.asdict(request.state.service.predictor.card))


async def metrics_text(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    return Response(request.state.service.metrics.text(), media_type="text/plain; version=0.0.4")


# --- reading an upload -------------------------------------------------------------------------------------


async def read_upload(request: Request) -> bytes:
    """The bytes of the one file in a request: any file field of a multipart form, or a raw image/* body.

    Raises PayloadTooLarge, UnsupportedMedia.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = request.state.service.settings.max_upload_mb * 1_000_000
    if kind == "multipart/form-data":
        data = await read_form(request.headers["content-type"], request.stream())
    elif kind.startswith("image/"):
        data = await request.body()
    else:
        raise UnsupportedMedia(
            f"The content type is '{kind[:80]}'; multipart/form-data with a file, or image/* with the photo "
            "as the body, was expected: curl -F file=@photo.jpg",
            "unsupported-media-type",
        )
    if len(data) > limit:
        raise too_large(limit)
    return data


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of an upload over `limit` bytes."""
    return PayloadTooLarge(
        f"The upload is over {limit / 1_000_000:.0f} MB, which is the limit here; send a smaller photo."
    )


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


# --- the edge ----------------------------------------------------------------------------------------------


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

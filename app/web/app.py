"""The Starlette application: routes, lifespan, and how an upload is read."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from app.errors import BadRequest, RequestError, StartupError, TooManyRequests, Unauthorized, UnsupportedMedia
from app.metrics import Metrics
from app.settings import Settings
from app.web.access import SESSION_SECONDS
from app.web.middleware import RequestMiddleware, failed_request, failed_route, too_large
from app.web.multipart import MAX_FIELD, MAX_PARTS, read_form
from app.web.pages import VIEW, Pages
from app.web.problems import wants_page
from app.web.state import STARTING_RETRY, Service

Answer = TypeVar("Answer")

FRESH: Final = {"cache-control": "no-cache"}  # asked for again each time: settings and phases change
VARIES: Final = {"vary": "Accept"}
SESSION: Final = "session"  # the cookie
FORM_OVERHEAD: Final = 64 * 1024  # what a multipart body may have around the file: boundaries, other fields
MAX_UPLOADING: Final = 64_000_000  # bytes of all uploads together, in memory: twenty as phones send them


def create_app(settings: Settings, on_failure: Callable[[StartupError], None]) -> Starlette:
    """Build the application. It answers at once and opens the model in the background.

    `on_failure` is called once, from the event loop, if the model cannot be opened.
    """
    metrics = Metrics()
    pages = Pages(settings)
    packed = [Middleware(GZipMiddleware)]  # of what anybody may read; nothing secret is beside it

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        service = Service(settings, metrics, on_failure)

        async def opening_service() -> None:
            await service.open()
            if service.card:
                pages.classes = service.card.classes

        opening = asyncio.create_task(opening_service())
        yield {"service": service, "pages": pages}
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await service.close()

    app = Starlette(
        routes=[
            Route("/", page, middleware=packed),
            Route("/api", api_page, middleware=packed),
            Route("/manifest.webmanifest", manifest),
            Route("/samples/{number:int}", sample),
            Route("/analyze", analyze, methods=["GET", "POST"] if settings.allow_url else ["POST"]),
            Route("/explain", explain, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/model", model),
            Route("/openapi.json", openapi),
            *([Route("/metrics", metrics_text)] if settings.metrics else []),
            Route("/static/style.css", stylesheet, middleware=packed),
            Mount("/static", FreshFiles(directory=VIEW / "static"), middleware=packed),
        ],
        middleware=[
            Middleware(
                RequestMiddleware,
                metrics=metrics,
                max_body=max_body(settings),
                max_uploading=max(MAX_UPLOADING, max_body(settings)),
                origins=settings.cors_origins,
            )
        ],
        exception_handlers={
            RequestError: failed_request,  # type: ignore[dict-item]  # Starlette types them by Exception
            HTTPException: failed_route,  # type: ignore[dict-item]
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would build a link from the Host header
    return app


class FreshFiles(StaticFiles):
    """Static files that are asked for again each time: unchanged ones are answered with 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Not to be guessed by the browser: a new page would meet an old script."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


def max_body(settings: Settings) -> int:
    """The most bytes of a request body: a file of the allowed size, and what a form puts around it."""
    return settings.max_upload_mb * 1_000_000 + FORM_OVERHEAD


# --- the routes --------------------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    """GET /: the upload page."""
    service = request.state.service
    response = HTMLResponse(request.state.pages.index(service.phase), headers=FRESH)
    if service.keys:  # programs need a key, the page does not: it shows that it was loaded from here
        response.set_cookie(
            SESSION,
            service.keys.session(time.time()),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


async def api_page(request: Request) -> Response:
    """GET /api: how programs use the server, and what is served, to be read."""
    return HTMLResponse(request.state.pages.api(request.state.service.card), headers=FRESH)


async def stylesheet(request: Request) -> Response:
    """GET /static/style.css: with the colors of the settings."""
    return Response(request.state.pages.stylesheet, media_type="text/css", headers=FRESH)


async def manifest(request: Request) -> Response:
    """GET /manifest.webmanifest: what lets a phone install the page."""
    return JSONResponse(request.state.pages.manifest(), media_type="application/manifest+json")


async def sample(request: Request) -> Response:
    """GET /samples/0: a photo to try on the page."""
    samples, number = request.state.pages.samples, request.path_params["number"]
    if number >= len(samples):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(samples[number])


async def analyze(request: Request) -> Response:
    """POST /analyze: a photo as the one file of a form, or as the raw body -> its Prediction as JSON.

    With `allow_url` also GET /analyze?url= and a form with a field `url`. A browser that sends the form by
    itself, without JavaScript, gets a page.
    """
    prediction = await answered(request, request.state.service.predictor.predict)
    if wants_page(request.headers.get("accept", "")):
        return HTMLResponse(request.state.pages.answer(prediction), headers=VARIES)
    return as_json(prediction, VARIES)


async def explain(request: Request) -> Response:
    """POST /explain: a photo as for /analyze -> the Explanation of its likeliest class, or of `?label=`."""
    predictor, label = request.state.service.predictor, request.query_params.get("label", "")
    return as_json(await answered(request, partial(predictor.explain, label=label)))


def as_json(record: Struct, headers: dict[str, str] | None = None) -> Response:
    """The fields of a record, as JSON."""
    return Response(msgspec.json.encode(record), headers=headers, media_type="application/json")


async def answered(request: Request, ask: Callable[[bytes, float], Coroutine[Any, Any, Answer]]) -> Answer:
    """What `ask` says of the photo in a request; cancelled if the client leaves. Raises RequestError."""
    admit(request)
    predictor = request.state.service.predictor  # or 503, before anything is read
    data = await read_photo(request)  # before the slot: a slow upload keeps nobody else out
    with predictor.slot() as deadline:
        answer = asyncio.create_task(ask(data, deadline))
        # the body is read: all that may still come is that the client leaves
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            answer.cancel()
            leaving.cancel()


def admit(request: Request) -> None:
    """Raises TooManyRequests, Unauthorized."""
    service = request.state.service
    client = request.client.host if request.client else ""
    if wait := service.limiter.retry_after(client, time.monotonic()):
        limit = service.settings.rate_limit
        raise TooManyRequests(
            f"Each client may ask {limit} times a minute; wait a little.", retry_after=math.ceil(wait)
        )
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    candidate = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    session = request.cookies.get(SESSION, "")
    if service.keys and not (
        service.keys.matches(candidate) or service.keys.verify_session(session, time.time())
    ):
        raise Unauthorized(
            "A key is needed, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. On the page: load it anew."
        )


async def healthz(request: Request) -> Response:
    """GET /healthz: the process lives."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 once the model is open, before that 503 with how far opening has come."""
    service = request.state.service
    progress = service.progress()
    if service.phase == "ready":
        return JSONResponse(progress)
    headers = {"retry-after": str(STARTING_RETRY)}
    return JSONResponse(progress, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def model(request: Request) -> Response:
    """GET /model: what is being served."""
    return as_json(request.state.service.predictor.card)


async def openapi(request: Request) -> Response:
    """GET /openapi.json: the interface for programs, without what the settings have switched off."""
    settings = request.state.service.settings
    document = json.loads((VIEW / "openapi.json").read_text("utf-8"))
    if not settings.allow_url:
        del document["paths"]["/analyze"]["get"]
    if not settings.metrics:
        del document["paths"]["/metrics"]
    return JSONResponse(document)


async def metrics_text(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    return Response(request.state.service.metrics.text(), media_type="text/plain; version=0.0.4")


# --- reading an upload -------------------------------------------------------------------------------------


async def read_photo(request: Request) -> bytes:
    """The bytes of the photo of a request: the file of a form, a raw image/* body, or what a link leads to.

    Raises BadRequest, PayloadTooLarge, UnsupportedMedia, and what `fetch_image` raises.
    """
    settings = request.state.service.settings
    limit = settings.max_upload_mb * 1_000_000
    data, url = await read_body(request)
    if url and data is None and settings.allow_url:
        # off by default, and its aiohttp is a fifth of the start
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
    """The file of a request, if there is one, and the link in its field `url`, if there is one.

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
    """The fields of a urlencoded form, the first of each name."""
    if len(body) > MAX_FIELD or body.count(b"&") >= MAX_PARTS:
        raise BadRequest("The form is too large; one field url was expected.", "field-too-large")
    return dict(reversed(parse_qsl(body.decode("utf-8", "replace"))))

"""The Starlette application: routes, their answers, and its lifespan."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from app.metrics import Metrics
from app.settings import Settings
from app.web.access import set_session
from app.web.analysis import photo_routes
from app.web.middleware import around_requests
from app.web.pages import VIEW, Pages
from app.web.problems import HANDLERS, as_json, language_of
from app.web.state import STARTING_RETRY, OnFailure, Service

FRESH: Final = {"cache-control": "no-cache"}  # browsers revalidate: settings and phases change


def create_app(settings: Settings, on_failure: OnFailure) -> Starlette:
    """Build the application. It answers at once and opens the model in the background.

    `on_failure` is called once, from the event loop, if the model cannot be opened.
    """
    metrics = Metrics()
    pages = Pages(settings)
    packed = [Middleware(GZipMiddleware)]  # public pages alone: no secret is compressed beside them

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        service = Service(settings, metrics, on_failure)

        async def open_service() -> None:
            await service.open()
            if service.phase == "ready":
                pages.opened(service.predictor.card)

        opening = asyncio.create_task(open_service())
        yield {"service": service, "pages": pages}
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await service.close()

    app = Starlette(
        routes=[
            Route("/", page, middleware=packed),
            Route("/api", api_page, middleware=packed),
            Route("/manifest.webmanifest", manifest),
            Route("/worker.js", worker, middleware=packed),
            Route("/preview.jpg", preview),
            Route("/samples/{number:int}", sample),
            *photo_routes(settings),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/model", model),
            Route("/openapi.json", openapi),
            *([Route("/metrics", metrics_text)] if settings.metrics else []),
            Route("/static/style.css", stylesheet, middleware=packed),
            Mount("/static", FreshFiles(directory=VIEW / "static"), middleware=packed),
        ],
        middleware=around_requests(settings, metrics),
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would build a link from the Host header
    return app


class FreshFiles(StaticFiles):
    """Static files that browsers revalidate each time; an unchanged file is answered with 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Forbid the browser's own guess of a lifetime: a new page would meet an old script."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


async def page(request: Request) -> Response:
    """GET /: the upload page."""
    pages = request.state.pages
    text = pages.index(request.state.service.phase, language_of(request))
    response = HTMLResponse(text, headers=FRESH | {"vary": "Accept-Language"})
    set_session(request, response)
    return response


async def api_page(request: Request) -> Response:
    """GET /api: the documentation for programs, and the model card as a table."""
    service = request.state.service
    card = service.predictor.card if service.phase == "ready" else None
    return HTMLResponse(request.state.pages.api(card), headers=FRESH)


async def stylesheet(request: Request) -> Response:
    """GET /static/style.css: with the colors of the settings."""
    return Response(request.state.pages.stylesheet, media_type="text/css", headers=FRESH)


async def manifest(request: Request) -> Response:
    """GET /manifest.webmanifest: lets a phone install the page."""
    return JSONResponse(request.state.pages.manifest(), media_type="application/manifest+json")


async def worker(request: Request) -> Response:
    """GET /worker.js: the service worker, for the addresses beside and below it."""
    return FileResponse(VIEW / "static" / "worker.js", headers=FRESH)


def preview(request: Request) -> Response:  # drawn on a thread, once
    """GET /preview.jpg: the picture of a link to the page."""
    return Response(request.state.pages.preview, media_type="image/jpeg", headers=FRESH)


async def sample(request: Request) -> Response:
    """GET /samples/0: a photo to try on the page."""
    samples, number = request.state.pages.samples, request.path_params["number"]
    if number >= len(samples):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(samples[number])


async def healthz(request: Request) -> Response:
    """GET /healthz: 200 while the process runs."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 once the model is open, before that 503 with the phase and the percentage."""
    service = request.state.service
    progress = service.progress()
    if service.phase == "ready":
        return JSONResponse(progress)
    headers = {"retry-after": str(STARTING_RETRY)}
    return JSONResponse(progress, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def model(request: Request) -> Response:
    """GET /model: the model card."""
    return as_json(request.state.service.predictor.card)


async def openapi(request: Request) -> Response:
    """GET /openapi.json: the interface for programs, without the requests that the settings switch off."""
    settings = request.state.service.settings
    document = json.loads((VIEW / "openapi.json").read_text("utf-8"))
    if not settings.allow_url:
        del document["paths"]["/analyze"]["get"]
    if not settings.metrics:
        del document["paths"]["/metrics"]
    if not settings.feedback:
        del document["paths"]["/feedback"], document["paths"]["/feedback/{key}"]
    if not settings.show_proof:
        del document["paths"]["/nearest"]
    return JSONResponse(document)


async def metrics_text(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    return Response(request.state.service.metrics.text(), media_type="text/plain; version=0.0.4")

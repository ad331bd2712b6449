"""The page and its parts, the health of the server, and the documents about it."""

import json
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from app.web.access import set_session
from app.web.pages import VIEW
from app.web.problems import as_json, language_of
from app.web.state import STARTING_RETRY

FRESH: Final = {"cache-control": "no-cache"}  # browsers revalidate: settings and phases change


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
    answers = request.state.site.answers
    card = answers.card if answers else None
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
    return as_json(request.state.service.answers(request.state.site).card)


async def openapi(request: Request) -> Response:
    """GET /openapi.json: the interface for programs, without the requests that the settings switch off.

    At the root it has those of every application, below its name.
    """
    settings, root = request.state.service.settings, request.scope["root_path"]
    document = json.loads((VIEW / "openapi.json").read_text("utf-8"))
    paths = document["paths"]
    predict = paths.pop("/predict")
    if not settings.allow_url:
        del paths["/analyze"]["get"]
    if not settings.metrics:
        del paths["/metrics"]
    if not settings.feedback:
        del paths["/feedback"], paths["/feedback/{key}"]
    if not settings.show_proof:
        del paths["/nearest"]
    if applications := [name for name in request.state.service.sites.sites if name]:
        version = predict["post"]["parameters"]
        for path in {"/analyze", "/explain", "/picture", "/nearest"} & paths.keys():
            for operation in paths[path].values():
                operation["parameters"] = [*operation.get("parameters", []), *version]
        document["paths"] = _paths(paths, predict, request.path_params.get("application"), applications)
    if root:
        document["servers"] = [{"url": root}]
    return JSONResponse(document)


def _paths(
    paths: dict[str, Any], predict: dict[str, Any], name: str | None, applications: list[str]
) -> dict[str, Any]:
    """Return the requests of an application below its own address, or all of the server's."""
    own = {path: each for path, each in paths.items() if path not in ("/healthz", "/metrics")}
    own["/predict"] = predict
    if name:
        return own
    below = {
        f"/{application}{path}": {
            method: {**operation, "operationId": f"{operation['operationId']} {application}"}
            for method, operation in operations.items()
        }
        for application in applications
        for path, operations in own.items()
    }
    return paths | below


async def metrics_text(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    return Response(request.state.service.metrics.text(), media_type="text/plain; version=0.0.4")

"""The addresses of the server: its own, and those of each application."""

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute, Mount, Route

from app.settings import Settings
from app.web import views
from app.web.analysis import photo_routes
from app.web.clipper import predict
from app.web.pages import VIEW
from app.web.sites import Sites, SlashRedirect


def routes(settings: Settings) -> list[BaseRoute]:
    """Return the routes; those of the first application are at the root too."""
    packed = [Middleware(GZipMiddleware)]  # public pages alone: no secret is compressed beside them
    site = [
        Route("/", views.page, middleware=packed),
        Route("/api", views.api_page, middleware=packed),
        Route("/manifest.webmanifest", views.manifest),
        Route("/worker.js", views.worker, middleware=packed),
        Route("/preview.jpg", views.preview),
        Route("/samples/{number:int}", views.sample),
        *photo_routes(settings),
        Route("/readyz", views.readyz),
        Route("/model", views.model),
        Route("/openapi.json", views.openapi),
        Route("/static/style.css", views.stylesheet, middleware=packed),
        Mount("/static", views.FreshFiles(directory=VIEW / "static"), middleware=packed),
    ]
    server = [
        Route("/healthz", views.healthz),
        *([Route("/metrics", views.metrics_text)] if settings.metrics else []),
    ]
    return [
        *server,
        Sites("/{application}", [*site, Route("/predict", predict, methods=["POST"])]),
        SlashRedirect("/{application}"),
        Sites("", site),
    ]

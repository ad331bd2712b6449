"""The Starlette application: its routes, its middleware and its lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from app.catalog import Catalog
from app.metrics import Metrics
from app.settings import Settings
from app.web.linking import LOCAL, MakeFleet, Sites, make_pages
from app.web.middleware import around_requests
from app.web.problems import HANDLERS
from app.web.routes import routes
from app.web.state import OnFailure, Service


def create_app(served: Settings | Catalog, on_failure: OnFailure, make_fleet: MakeFleet = LOCAL) -> Starlette:
    """Build the application. It answers at once and opens the models in the background.

    `on_failure` is called once, from the event loop, if a model cannot be opened. `make_fleet` returns the
    open versions: by default those of this process.
    """
    catalog = served if isinstance(served, Catalog) else Catalog(served, {}, {})
    settings = catalog.settings
    metrics = Metrics()
    pages = make_pages(catalog)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        sites = Sites(pages, metrics, make_fleet)
        service = app.state.service = Service(catalog, sites, metrics, on_failure)
        opening = asyncio.create_task(service.open())
        yield {"service": service}
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await service.close()

    app = Starlette(
        routes=routes(settings),
        middleware=around_requests(settings, metrics),
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would build a link from the Host header
    return app

"""The state that all requests share: the applications, while their versions open and once they are open.

Knows nothing of HTTP.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import Final

from app.catalog import Catalog, changed_in_server
from app.errors import StartupError, Unavailable
from app.logs import log_progress
from app.metrics import Metrics
from app.serving.application import Application, Single
from app.web.access import ApiKeys, RateLimiter
from app.web.linking import Site, Sites, make_pages

STARTING_RETRY: Final = 2  # seconds
MAX_FETCHING: Final = 6  # images fetched at the same time: as much memory as uploads have

logger = logging.getLogger(__name__)


OnFailure = Callable[[StartupError], None]


class Service:
    """The state of one server: its applications, and the progress of opening their versions."""

    def __init__(self, catalog: Catalog, sites: Sites, metrics: Metrics, on_failure: OnFailure) -> None:
        self.settings = catalog.settings
        self.metrics = metrics
        self.sites = sites
        self._catalog = catalog
        self._changing = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None
        self._on_failure = on_failure
        self.keys = ApiKeys(self.settings.api_keys)
        self.limiter = RateLimiter(self.settings.rate_limit)
        self.fetching = asyncio.Semaphore(MAX_FETCHING)
        self.phase = "starting"
        self.percent: int | None = None
        self.received: int | None = None
        self.total: int | None = None

    def answers(self, site: Site) -> Application | Single:
        """Return what answers for an application. Raises Unavailable while its versions are being opened."""
        if site.answers is None:
            percent = "" if self.percent is None else f", {self.percent} %"
            raise Unavailable(
                f"The model is not ready yet ({self.phase}{percent}); try again in a moment.",
                "model-loading",
                retry_after=STARTING_RETRY,
            )
        return site.answers

    def report(
        self, phase: str, percent: int | None, received: int | None = None, total: int | None = None
    ) -> None:
        """Note and log the progress of opening: a phase, its percentage, and the bytes of a download."""
        if phase != self.phase:
            logger.info("%s", phase)
        else:
            log_progress(phase, percent, received)
        self.phase, self.percent, self.received, self.total = phase, percent, received, total

    def progress(self) -> dict[str, str | int | None]:
        """Return the progress of opening, with the bytes of a download."""
        progress = {"phase": self.phase, "percent": self.percent}
        return progress if self.received is None else progress | {"bytes": self.received, "total": self.total}

    async def open(self) -> None:
        """Open the versions; hand a failure to `on_failure`."""
        start = time.monotonic()
        try:
            async with self._changing:
                await self.sites.apply(self._catalog, self.report)
        except Exception as error:  # an unexpected one must not leave a server that never gets ready
            self.report("failed", None)
            self._on_failure(_startup_error(error))
        else:
            gc.freeze()  # what lives as long as the server is not searched again: that takes 0.1 s
            self.report("ready", 100)
            self._sweeping = asyncio.create_task(self.sites.sweep_hourly())
            logger.info("ready after %.2f s", time.monotonic() - start)

    async def reload(self, read: Callable[[], Catalog]) -> None:
        """Serve another catalog: open its new versions, relink, and close the versions that are gone.

        If it is invalid, or one of its versions cannot be opened, the log says why, and nothing changes.
        """
        async with self._changing:
            try:
                catalog = await asyncio.to_thread(read)
                pages = await asyncio.to_thread(make_pages, catalog)
                gone = await self.sites.apply(catalog, lambda *_: None, pages)
            except Exception as error:
                logger.error("the settings are not applied: %s", _startup_error(error))
                return
            if fixed := changed_in_server(self.settings, catalog.settings):
                logger.warning("restart the server to apply another %s", ", ".join(fixed))
            await asyncio.gather(*(version.close() for version in gone))
            logger.info("the settings are applied; open: %s", ", ".join(catalog.versions) or "one model")

    async def close(self) -> None:
        """Finish the requests under way and close all versions."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self.sites.close()


def _startup_error(error: Exception) -> StartupError:
    """Return the error, or one that reports a bug; its traceback goes to the log."""
    if isinstance(error, StartupError):
        return error
    logger.error("the model could not be opened", exc_info=error)
    return StartupError(f"the model could not be opened ({type(error).__name__}): a bug; please report it")

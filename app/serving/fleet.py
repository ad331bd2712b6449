"""The versions that this process has open, and how another catalog takes the place of the first one."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from app.catalog import Catalog, same_model
from app.metrics import Metrics
from app.progress import Report
from app.serving.application import Endpoint
from app.serving.local import LocalEndpoint
from app.serving.opening import open_model
from app.serving.predictor import Predictor
from app.serving.threads import Threads

logger = logging.getLogger(__name__)


class Fleet(Protocol):
    """The open versions of a catalog, by their names: in this process or elsewhere. To be closed."""

    async def open(self, catalog: Catalog, report: Report) -> Mapping[str, Endpoint]:
        """Open and prove the versions that are new in a catalog; return all of its versions.

        A version with other settings is a new one. Call `keep` or `discard` next. Raises StartupError.
        """

    async def discard(self, versions: Mapping[str, Endpoint]) -> None:
        """Close those of the versions that are not in use."""

    def keep(self, versions: Mapping[str, Endpoint]) -> list[Endpoint]:
        """Take the versions into use; return those that are gone, which the caller closes."""

    async def close(self) -> None:
        """Finish the photos under way, and close all."""


class LocalFleet:
    """The versions that are open in this process; see Fleet."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._threads = Threads()
        self._open: dict[str, Endpoint] = {}

    async def open(self, catalog: Catalog, report: Report) -> Mapping[str, Endpoint]:
        """Open versions; see Fleet."""
        wanted = {name: version.settings for name, version in catalog.versions.items()} or {
            "": catalog.settings
        }
        versions: dict[str, Endpoint] = {}
        try:
            for name, settings in wanted.items():
                known = self._open.get(name)
                if known and same_model(settings, known.settings):
                    versions[name] = known
                    continue
                if name:
                    logger.info("opening %s", name)
                model = await open_model(settings, report)
                versions[name] = LocalEndpoint(Predictor(model, self._metrics, self._threads), settings)
        except BaseException:
            await self.discard(versions)
            raise
        return versions

    async def discard(self, versions: Mapping[str, Endpoint]) -> None:
        """Close those of the versions that are not in use."""
        new = [each for each in versions.values() if each not in self._open.values()]
        await asyncio.gather(*(each.close() for each in new))

    def keep(self, versions: Mapping[str, Endpoint]) -> list[Endpoint]:
        """Take the versions into use; return those that are gone, which the caller closes."""
        gone = [each for each in self._open.values() if each not in versions.values()]
        self._open = dict(versions)
        self._note()
        return gone

    def _note(self) -> None:
        self._metrics.model.clear()
        for name, each in self._open.items():
            facts = {"architecture": each.card.architecture, "sha256": each.card.sha256}
            self._metrics.model.labels(name).info(facts)

    async def close(self) -> None:
        """Finish the photos under way, and close all."""
        await asyncio.gather(*(each.close() for each in self._open.values()))
        self._threads.close()

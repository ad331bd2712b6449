"""The applications of a server as the web sees them, linked to open versions. Knows nothing of HTTP."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from app.catalog import Catalog
from app.metrics import Metrics
from app.progress import Report
from app.serving.application import Application, Endpoint, Single
from app.serving.feedback import Feedback, open_feedback
from app.serving.fleet import Fleet, LocalFleet
from app.web.pages import Pages

HOUR: Final = 3600  # seconds

MakeFleet = Callable[[Metrics], Fleet]
LOCAL: Final[MakeFleet] = LocalFleet  # the versions are open in this process

logger = logging.getLogger(__name__)


class Site:
    """An application, with its page; `answers` is None until its versions are open."""

    def __init__(
        self, pages: Pages, answers: Application | Single | None = None, feedback: Feedback | None = None
    ) -> None:
        self.pages = pages
        self.answers = answers
        self.feedback = feedback
        if answers:
            pages.opened(answers.card)


def make_pages(catalog: Catalog) -> dict[str, Pages]:
    """Return the pages of each application, by its name; "" without applications. Raises SettingsError."""
    return {name: Pages(catalog.page(name), path=f"/{name}") for name in catalog.applications} or {
        "": Pages(catalog.settings)
    }


class Sites:
    """The applications by their names; "" is the one model of a server without applications. To be closed."""

    def __init__(self, pages: Mapping[str, Pages], metrics: Metrics, make_fleet: MakeFleet) -> None:
        self.sites = {name: Site(each) for name, each in pages.items()}
        self._pages = pages
        self._metrics = metrics
        self._fleet = make_fleet(metrics)

    def find(self, name: str = "") -> Site | None:
        """Return an application by its name, or the first one."""
        return self.sites.get(name) if name else next(iter(self.sites.values()))

    async def apply(
        self, catalog: Catalog, report: Report, pages: Mapping[str, Pages] | None = None
    ) -> list[Endpoint]:
        """Open the versions of a catalog and link its applications; return the versions that are gone.

        The caller closes these. `pages` are new ones of the applications. Raises StartupError, and has then
        changed nothing.
        """
        pages = pages or self._pages
        versions = await self._fleet.open(catalog, report)
        try:
            feedback = {name: self._feedback(catalog, name, versions) for name in pages}
        except BaseException:
            await self._fleet.discard(versions)
            raise
        gone = self._fleet.keep(versions)
        sites = {}
        for name, each in pages.items():
            linked = self._linked(name, catalog, versions) if name else Single(versions[""])
            sites[name] = Site(each, linked, feedback[name])
        self.sites = sites
        return gone

    def _linked(self, name: str, catalog: Catalog, versions: Mapping[str, Endpoint]) -> Application:
        """Return an application; a known one is linked again, and keeps its cache."""
        settings, known = catalog.applications[name], self.sites.get(name)
        if known and isinstance(known.answers, Application):
            known.answers.relink(settings, versions)
            return known.answers
        return Application(name, settings, versions, self._metrics)

    def _feedback(self, catalog: Catalog, name: str, versions: Mapping[str, Endpoint]) -> Feedback | None:
        """Return the place for feedback, a folder for each application. Raises SettingsError."""
        settings = catalog.page(name)
        place = settings.feedback
        if name and place and not place.startswith("https://"):
            settings = replace(settings, feedback=str(Path(place) / name))
        linked = catalog.applications[name].links[0] if name else ""
        return open_feedback(settings, versions[linked].card.classes)

    async def sweep_hourly(self) -> None:
        """Delete the feedback whose time is over, also where nobody sends a new one."""
        while True:
            for site in self.sites.values():
                try:
                    if site.feedback:
                        await site.feedback.sweep()
                except OSError as error:
                    logger.warning("feedback cannot be swept: %s", error)
            await asyncio.sleep(HOUR)

    async def close(self) -> None:
        """Finish the requests under way and close all versions."""
        await self._fleet.close()

"""The front of a machine: our own server, whose versions are on the cluster."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from app.catalog import Catalog
from app.cluster import ray_serve
from app.errors import StartupError
from app.metrics import Metrics
from app.progress import Report
from app.serving.application import Endpoint

POLL_SECONDS: Final = 0.5  # between two looks at the links
FIRST_SECONDS: Final = 60.0  # for a machine that joins to learn the links


class RemoteFleet:
    """The versions of a cluster, by their names; they run elsewhere."""

    def __init__(self, links: "Links") -> None:
        self._links = links
        self._open: dict[str, ray_serve.RemoteEndpoint] = {}  # by their places

    async def open(self, catalog: Catalog, report: Report) -> Mapping[str, Endpoint]:
        """Return the versions of a catalog that came from the cluster."""
        versions = {name: self._links.table.versions[name] for name in catalog.versions}
        self._open = {
            each.place: self._open.get(each.place) or ray_serve.RemoteEndpoint(each)
            for each in versions.values()
        }
        return {name: self._open[each.place] for name, each in versions.items()}

    async def discard(self, versions: Mapping[str, Endpoint]) -> None:
        """Do nothing: nothing was opened here."""

    def keep(self, versions: Mapping[str, Endpoint]) -> list[Endpoint]:
        """Return none: `apply` deletes the versions that are gone."""
        return []

    async def close(self) -> None:
        """Do nothing: the versions stay."""


class Links:
    """The latest links of the cluster, which a thread asks for; the last ones, while nobody answers."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Ask until there are any; from then on call `changed` after each change. Raises StartupError."""
        deadline = time.monotonic() + FIRST_SECONDS
        while (table := ray_serve.read_table()) is None:
            if time.monotonic() > deadline:
                raise StartupError("The cluster has no applications yet: run `python -m app apply` first.")
            time.sleep(POLL_SECONDS)
        self.table = table
        self._changed = changed
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="links", daemon=True)
        self._thread.start()

    def read(self) -> Catalog:
        """Return the catalog of the latest links."""
        return self.table.catalog

    def fleet(self, metrics: Metrics) -> RemoteFleet:
        """Return the versions behind the links."""
        return RemoteFleet(self)

    def _watch(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            table = ray_serve.read_table()
            if table is not None and table != self.table:
                self.table = table
                self._changed()

    def close(self) -> None:
        """End the thread."""
        self._end.set()

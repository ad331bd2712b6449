"""The models, versions and applications of the settings' file. Knows neither HTTP nor an engine.

A model has versions; each one is a checkpoint with its settings. Clients ask an application, which is linked
to one version of a model and may send a share of the photos to another one, the canary.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from app.errors import SettingsError
from app.settings import HINTS, Settings

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.IGNORECASE)
# the first part of an address of the server itself
RESERVED: Final = frozenset(
    (
        *("analyze", "api", "explain", "feedback", "healthz", "manifest.webmanifest", "metrics", "model"),
        *("nearest", "openapi.json", "picture"),
        *("predict", "preview.jpg", "readyz", "samples", "static", "status", "worker.js"),
    )
)
# settings of a model that each of its versions may have for itself; the others are the server's or the page's
OF_A_VERSION: Final = tuple(HINTS)[: list(HINTS).index("unfamiliar_below") + 1]
OF_A_PAGE: Final = ("title", "description", "samples")
MAX_REPLICAS: Final = 1000

Name = Annotated[str, Meta(min_length=1)]


class VersionSettings(Struct, frozen=True):
    """A version of a model: the settings that it is opened with.

    `replicas` are the least and the most of a cluster; a server alone opens each version once.
    """

    settings: Settings
    replicas: tuple[int, int] = (1, 1)


class ApplicationSettings(Struct, frozen=True, kw_only=True):
    """An application. The annotation of each member has its range and its meaning."""

    model: Annotated[Name, Meta(description="The model that answers.")]
    version: Annotated[Name, Meta(description="The version of the model that the application is linked to.")]
    canary: Annotated[
        str,
        Meta(description="A second version, for a share of the photos: a photo always gets the same one."),
    ] = ""
    share: Annotated[float, Meta(ge=0, le=1, description="The share of the photos for the canary.")] = 0.0
    objective_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=30_000,
            description="The latency objective in milliseconds. A later answer is replaced by `default`. "
            "0 for none.",
        ),
    ] = 0
    default: Annotated[str, Meta(max_length=1000, description="The class that a late answer has.")] = (
        "unknown"
    )
    cache: Annotated[
        int, Meta(ge=0, le=1_000_000, description="The number of answers to keep, for photos sent again.")
    ] = 0
    title: Annotated[str, Meta(max_length=200, description="The title of the application's page.")] = ""
    description: Annotated[str, Meta(max_length=1000, description="The text below the title.")] = ""
    samples: Annotated[str, Meta(description="A folder of up to 6 photos to try on the page.")] = ""

    @property
    def links(self) -> tuple[str, ...]:
        """The versions that the application needs, as "model/version"."""
        return tuple(f"{self.model}/{version}" for version in (self.version, self.canary) if version)


class Catalog(Struct, frozen=True):
    """All that a server serves. Without tables in the file there are no applications, and one version, "".

    `settings` are those of the server, and of the version that the first application is linked to; `versions`
    have names such as "garments/v1".
    """

    settings: Settings
    versions: Mapping[str, VersionSettings]
    applications: Mapping[str, ApplicationSettings]

    def page(self, name: str) -> Settings:
        """Return the settings of an application's page: its own texts, and the classes of its version."""
        application = self.applications.get(name)
        if application is None:
            return self.settings
        settings = self.versions[application.links[0]].settings
        own = {key: value for key in OF_A_PAGE if (value := getattr(application, key))}
        return replace(settings, explicit=settings.explicit | own.keys(), **own)


def same_model(one: Settings, other: Settings) -> bool:
    """Return whether two settings open the same model: those of the server and the page may differ."""
    return all(
        getattr(one, name) == getattr(other, name) and one.is_set(name) == other.is_set(name)
        for name in OF_A_VERSION
    )


def changed_in_server(one: Settings, other: Settings) -> list[str]:
    """Return the names of the settings that differ, without those of models and pages."""
    names = [name for name in HINTS if name not in (*OF_A_VERSION, *OF_A_PAGE)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def check_catalog(
    versions: Mapping[str, VersionSettings], applications: Mapping[str, ApplicationSettings]
) -> None:
    """Check what types cannot express. Raises SettingsError with the table and the remedy."""
    for name, application in applications.items():
        table = f"[applications.{name}]"
        check_name(name, table)
        if name.lower() in RESERVED:
            raise SettingsError(
                f"{table} has the name of an address of the server itself; choose another one."
            )
        _check_links(table, application, list(versions))
    folded = [name.lower() for name in applications]
    if twice := [name for name in applications if folded.count(name.lower()) > 1]:
        raise SettingsError(
            f"The applications {' and '.join(twice)} differ only in case; choose other names."
        )
    if versions and not applications:
        raise SettingsError(
            "There are [models] and no application: add [applications.NAME] with model and version."
        )


def check_name(name: str, table: str) -> None:
    """Raise SettingsError unless a name can be a part of an address."""
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{table}: the name {name!r} is part of an address; use up to 63 letters, digits, '.', '_' and "
            "'-', with a letter or a digit first."
        )


def _check_links(table: str, application: ApplicationSettings, versions: Sequence[str]) -> None:
    models = list(dict.fromkeys(version.partition("/")[0] for version in versions))
    if application.model not in models:
        named = ", ".join(models) or "none: add [models.NAME.VERSION]"
        raise SettingsError(f"{table}: there is no model '{application.model}'; there are {named}.")
    for link in application.links:
        if link not in versions:
            known = [key.partition("/")[2] for key in versions if key.startswith(f"{application.model}/")]
            raise SettingsError(
                f"{table}: the model '{application.model}' has no version '{link.partition('/')[2]}'; it has "
                f"{', '.join(known)}."
            )
    if application.share and not application.canary:
        raise SettingsError(f"{table}: share is {application.share}, but there is no canary: name a version.")
    if application.canary == application.version:
        raise SettingsError(f"{table}: canary and version are both '{application.version}'; name two.")

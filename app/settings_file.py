"""Reads the settings from settings.toml and from the variables that begin with APP_."""

import difflib
import os
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import fields

from app.catalog import (
    MAX_REPLICAS,
    OF_A_VERSION,
    ApplicationSettings,
    Catalog,
    VersionSettings,
    check_catalog,
    check_name,
)
from app.environment import PREFIX, read_variables
from app.errors import SettingsError
from app.fetching.links import is_url
from app.settings import HINTS, PLACES, Settings, check
from app.toml_file import read_toml

SETTINGS_FILE: Final = Path(__file__).parent / "settings.toml"  # the demo's
OWN_FILE: Final = Path("settings.toml")  # in the working directory: git and upgrades leave it alone
SIDES: Final = ("image_size", "presize")
RENAMED: Final = {"exact": "write jpeg_downscale = true for exact = false"}


def find_settings() -> Path:
    """Return the settings file of the working directory, or else that of the demo."""
    return OWN_FILE if OWN_FILE.is_file() else SETTINGS_FILE


def load_settings(file: Path = SETTINGS_FILE, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings of the one model, or of the version that the first application is linked to.

    The environment overrides the file, and the file the defaults. Raises SettingsError with the name of the
    setting, its value and the expected values.
    """
    return load_catalog(file, environment).settings


def load_catalog(file: Path = SETTINGS_FILE, environment: Mapping[str, str] = os.environ) -> Catalog:
    """Read the settings, the versions of models and the applications.

    A version inherits the lines outside the tables, which the environment overrides. Raises SettingsError.
    """
    values = read_toml(file)
    models, applications = values.pop("models", {}), values.pop("applications", {})
    for name in values:
        _check_known(name, f"in {file.name}", required=True, known=(*HINTS, "models", "applications"))
    folder = file.resolve().parent
    _place(values, folder)
    overrides, texts = _from_environment(environment)

    def convert(table: dict[str, Any], where: str) -> Settings:
        try:
            merged = _square(values | overrides | table)
            settings = msgspec.convert(merged | {"explicit": list(merged)}, Settings, strict=False)
            check(settings)
        except msgspec.ValidationError as error:
            raise SettingsError(_sentence(error, values | texts | table, where, texts.keys())) from error
        return settings

    if not models and not applications:
        return Catalog(convert({}, file.name), {}, {})
    versions = {
        f"{model}/{version}": _version(table, f"[models.{model}.{version}]", folder, convert)
        for model, version, table in _tables_of_versions(models)
    }
    linked = {
        name: _application(name, _table(table, f"applications.{name}"), folder)
        for name, table in _table(applications, "applications").items()
    }
    check_catalog(versions, linked)
    first = next(iter(linked.values())).links[0]
    return Catalog(versions[first].settings, versions, linked)


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings that variables set, and their texts."""
    texts = {
        name: text
        for name, text in read_variables(environment, HINTS).items()
        if _check_known(name, f"in the variable {PREFIX}{name.upper()}", required=False)
    }
    overrides: dict[str, Any] = {name: _split(name, text) for name, text in texts.items()}
    _place(overrides, Path.cwd())
    return overrides, texts


def _tables_of_versions(models: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the model, the version and the table of each version. Raises SettingsError."""
    for model, versions in _table(models, "models").items():
        check_name(model, f"[models.{model}]")
        for version, table in _table(versions, f"models.{model}").items():
            check_name(version, f"[models.{model}.{version}]")
            if not isinstance(table, dict):
                raise SettingsError(
                    f"[models.{model}] sets {version}; settings belong to a version, such as "
                    f"[models.{model}.v1]."
                )
            yield model, version, table


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{name} is {value!r}; a table was expected: [{name}.NAME]")
    return value


def _version(
    table: dict[str, Any], where: str, folder: Path, convert: Callable[[dict[str, Any], str], Settings]
) -> VersionSettings:
    """Return the settings of a version."""
    for name in table:
        if name in HINTS and name not in OF_A_VERSION:
            raise SettingsError(
                f"{name} in {where} is a setting of the whole server: write it above the first table."
            )
        if name != "replicas":
            _check_known(name, f"in {where}", required=True)
    own = {name: value for name, value in table.items() if name != "replicas"}
    _place(own, folder)
    replicas = table.get("replicas", [1, 1])
    try:
        least, most = msgspec.convert(replicas, tuple[int, int])
    except msgspec.ValidationError:
        least, most = 0, 0
    if not 0 <= least <= most <= MAX_REPLICAS or not most:
        raise SettingsError(
            f"replicas in {where} is {replicas}; the least and the most were expected, such as [0, 4]."
        )
    return VersionSettings(convert(own, where), (least, most))


def _application(name: str, table: dict[str, Any], folder: Path) -> ApplicationSettings:
    """Return the settings of an application."""
    where = f"[applications.{name}]"
    known = [field.name for field in fields(ApplicationSettings)]
    for key in table:
        _check_known(key, f"in {where}", required=True, known=known)
    _place(table, folder)
    try:
        return msgspec.convert(table, ApplicationSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(error, table, where, ())) from error


def _check_known(name: str, where: str, *, required: bool, known: Collection[str] = HINTS) -> bool:
    """Return whether a setting has this name. Raises SettingsError if one must, or has a similar one."""
    if name in known:
        return True
    if name in RENAMED:
        raise SettingsError(f"The setting '{name}' {where} has a new name: {RENAMED[name]}.")
    alike = difflib.get_close_matches(name, known, 1, 0.6 if required else 0.85)
    if not (required or alike):
        return False  # APP_ENV, APP_NAME: hosts set such variables too
    hint = f"Did you mean '{alike[0]}'?" if alike else f"There are {', '.join(known)}."
    raise SettingsError(f"Unknown setting '{name}' {where}. {hint}")


def _split(name: str, text: str) -> str | list[str]:
    """Return the text of a variable, or its items if the setting is a list."""
    text = _unquoted(text)
    if typing.get_origin(typing.get_args(HINTS[name])[0]) is not tuple:
        return text
    if text.startswith("[") and text.endswith("]"):  # as in settings.toml
        text = text[1:-1]
    return [_unquoted(part) for part in text.split(",")]


def _unquoted(text: str) -> str:
    """Return a text without the quotes around it, which Docker's --env-file and some hosts keep."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted and text[0] not in text[1:-1] else text


def _square(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with every single side of a size doubled."""
    both = {name: [value] for name, value in values.items() if name in SIDES and not isinstance(value, list)}
    sides = {**values, **both}
    return sides | {name: sides[name] * 2 for name in SIDES if name in sides and len(sides[name]) == 1}


def _place(values: dict[str, Any], folder: Path) -> None:
    """Make the paths among the values absolute; they are relative to `folder`."""
    for name in PLACES:
        url = values.get(name)
        if isinstance(url, str) and url and not is_url(url):
            values[name] = str(folder / os.path.expanduser(url))


def _sentence(error: Exception, values: dict[str, Any], where: str, overridden: Collection[str]) -> str:
    """Return msgspec's "Expected `int` >= 32 - at `$.image_size`" with the setting and its value first."""
    expected, _, path = str(error).partition(" - at `$.")
    if not path:  # a required field is missing
        return f"{where}: {expected}."
    name = path.rstrip("`").partition("[")[0]
    source = f"The variable {PREFIX}{name.upper()}" if name in overridden else f"{name} in {where}"
    return f"{source} is {values[name]!r}. {expected}."

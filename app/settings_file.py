"""Reads the settings from settings.toml and from the variables that begin with APP_."""

import difflib
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

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
    """Read the settings: the environment overrides the file, and the file the defaults.

    Raises SettingsError with the name of the setting, its value and the expected values.
    """
    values = read_toml(file)
    for name in values:
        _check_known(name, f"in {file.name}", required=True)
    _place(values, file.resolve().parent)

    texts = {
        name: text
        for name, text in read_variables(environment, HINTS).items()
        if _check_known(name, f"in the variable {PREFIX}{name.upper()}", required=False)
    }
    overrides = {name: _split(name, text) for name, text in texts.items()}
    _place(overrides, Path.cwd())

    try:
        explicit = {"explicit": list(values | overrides)}
        settings = msgspec.convert(_square(values | overrides) | explicit, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(error, values | texts, file, texts.keys())) from error
    check(settings)
    return settings


def _check_known(name: str, where: str, *, required: bool) -> bool:
    """Return whether a setting has this name. Raises SettingsError if one must, or has a similar one."""
    if name in HINTS:
        return True
    if name in RENAMED:
        raise SettingsError(f"The setting '{name}' {where} has a new name: {RENAMED[name]}.")
    alike = difflib.get_close_matches(name, HINTS, 1, 0.6 if required else 0.85)
    if not (required or alike):
        return False  # APP_ENV, APP_NAME: hosts set such variables too
    hint = f"Did you mean '{alike[0]}'?" if alike else f"There are {', '.join(HINTS)}."
    raise SettingsError(f"Unknown setting '{name}' {where}. {hint}")


def _split(name: str, text: str) -> str | list[str]:
    """Return the text of a variable, or its items if the setting is a list."""
    is_list = typing.get_origin(typing.get_args(HINTS[name])[0]) is tuple
    return [part.strip() for part in text.split(",")] if is_list else text


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


def _sentence(
    error: Exception, values: dict[str, Any], file: Path, overridden: typing.Collection[str]
) -> str:
    """Return msgspec's "Expected `int` >= 32 - at `$.image_size`" with the setting and its value first."""
    expected, _, path = str(error).partition(" - at `$.")
    if not path:  # a required field is missing
        return f"{file.name}: {expected}."
    name = path.rstrip("`").partition("[")[0]
    source = f"The variable {PREFIX}{name.upper()}" if name in overridden else f"{name} in {file.name}"
    return f"{source} is {values[name]!r}. {expected}."

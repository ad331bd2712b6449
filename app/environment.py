"""The variables APP_<NAME> of the environment, and the files that APP_<NAME>_FILE names."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from app.errors import SettingsError

PREFIX: Final = "APP_"
IN_FILE: Final = "_FILE"  # as Docker and Kubernetes hand over secrets
MAX_BYTES: Final = 64_000  # of such a file


def read_variables(environment: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return the text of each variable that is not empty, by its name in lower case without the prefix.

    `names` are those that a file may hold. Raises SettingsError for a file that cannot be read.
    """
    texts: dict[str, str] = {}
    for variable, text in environment.items():
        if not text or not variable.startswith(PREFIX):
            continue
        plain = variable.removesuffix(IN_FILE)
        name = plain.removeprefix(PREFIX).lower()
        if plain == variable or name not in names:
            texts[variable.removeprefix(PREFIX).lower()] = text
        elif environment.get(plain):
            raise SettingsError(f"{variable} and {plain} are both set: remove one.")
        else:
            texts[name] = _secret(variable, Path(text))
    return texts


def _secret(variable: str, file: Path) -> str:
    """Return the text of a file, with its lines joined by commas. Raises SettingsError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        text = ",".join(line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable} is {file}, which cannot be read: {error}.") from error
    if not text or len(content) > MAX_BYTES:
        raise SettingsError(f"{variable} is {file}; a file of 1 to {MAX_BYTES} bytes was expected.")
    return text

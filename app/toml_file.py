"""A TOML file as people write it, also on Windows; the error names the cause."""

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from app.errors import SettingsError


def read_toml(file: Path) -> dict[str, Any]:
    """Read the values in a file. Raises SettingsError with the cause and the remedy."""
    content = b""
    try:
        content = file.read_bytes()
        return tomllib.loads(_text(content))
    except FileNotFoundError:
        raise SettingsError(
            f"There is no settings file {file}: name one that exists, or write model_url and classes into it."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}. {_remedy(content)}") from error


def _text(content: bytes) -> str:
    """Decode a settings file: UTF-8, or UTF-16 as Windows PowerShell writes it; without a byte order mark."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _remedy(content: bytes) -> str:
    """Return the remedy for a file that is not TOML."""
    text = content.decode("utf-8", "replace")
    if quote := re.search(r"= *\[? *([\u201c\u201d\u201e\u2018\u2019\u00ab])", text):
        return f"It has curly quotes ({quote[1]}), as word processors type them: use straight ones."
    if path := re.search(r'"([A-Za-z]:\\[^"\n]*)"', text):
        return f"In double quotes a backslash begins an escape: write '{path[1]}', in single quotes."
    if "\ufffd" in text:
        return "It has characters in another encoding than UTF-8: save it as UTF-8 in your editor."
    return "Write `name = value` on each line, and texts in quotes."

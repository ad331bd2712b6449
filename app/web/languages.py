"""The languages of the page: a file of texts for each in view/texts/, and which one a browser asks for."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

TEXTS: Final = Path(__file__).parent / "view" / "texts"
DEFAULT: Final = "en"


def load_texts() -> Mapping[str, Any]:
    """Return the texts of each language, by its code."""
    files = sorted(TEXTS.glob("*.json"))
    return {path.stem: json.loads(path.read_text("utf-8")) for path in files}


def choose_language(chosen: str, accepted: str, offered: Collection[str]) -> str:
    """Return the language of `?lang=`, else the first offered one of an Accept-Language header, else English.

    A region is ignored: "pt-BR" is Portuguese (RFC 4647, 3.4, lookup).
    """
    ranges = []
    for entry in accepted[:1000].split(","):
        tag, _, weight = entry.partition(";")
        try:
            quality = float(weight.partition("=")[2] or 1)
        except ValueError:
            quality = 0.0
        ranges.append((-quality, tag.strip().partition("-")[0].lower()))
    wanted = [chosen, *(tag for quality, tag in sorted(ranges, key=lambda entry: entry[0]) if quality < 0)]
    return next((tag for tag in wanted if tag in offered), DEFAULT)

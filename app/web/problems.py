"""The one form of every failure: an RFC 9457 problem, or a page that says the same where a browser asks.

Knows nothing of Starlette, so that the protocol can use it too.
"""

import html
import json
from http import HTTPStatus
from typing import Final, NamedTuple

TYPE: Final = "application/problem+json"

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="/static/style.css">
</head>
<body>
<main>
  <h1>{title}</h1>
  <p role="alert">{detail}</p>
  <p><a href="/">Back to the page</a></p>
  <p><small>{status} {code}, request {request_id}</small></p>
</main>
</body>
</html>
"""


class Problem(NamedTuple):
    """A failure: the HTTP status, a code out of a closed set that tells more, a sentence for a person."""

    status: int
    code: str
    detail: str
    request_id: str

    @property
    def title(self) -> str:
        """The name of the status."""
        return HTTPStatus(self.status).phrase

    def as_json(self) -> bytes:
        """RFC 9457. `about:blank`: the status is the type."""
        members = {"type": "about:blank", "title": self.title, **self._asdict()}
        return json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")

    def as_page(self) -> bytes:
        """The same as a page, and no more than that."""
        members = {"title": self.title, **self._asdict()}
        escaped = {name: html.escape(str(value)) for name, value in members.items()}
        return PAGE.format_map(escaped).encode("utf-8", "replace")


def wants_page(accept: str) -> bool:
    """Whether a client with this Accept header is a browser that shows what it gets: it asks for HTML.

    A program that can read a problem gets one.
    """
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    return "text/html" in kinds and not {"application/json", TYPE} & set(kinds)

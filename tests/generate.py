"""Write every generated document: `python -m tests.generate`. A test compares each with its source.

| document | source |
|---|---|
| docs/settings.md, app/settings.toml | app/settings.py |
| docs/errors.md | app/errors.py |
| app/web/view/openapi.json: schemas and version | the Structs of the answers, app/errors.py |
| docs/checkpoints.md: its tables | app/graphs/data, app/checkpoints |
| docs/faults.md | tests/faults.py, the marks of the tests |
"""

import json
import re
import textwrap
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import NODEFAULT, Meta
from msgspec.structs import fields

from app import __version__
from app.catalog import ApplicationSettings
from app.engines.grad_cam import Explanation
from app.errors import CODES
from app.serving.card import ModelCard
from app.serving.familiarity import Neighbor
from app.serving.predictor import Prediction
from app.settings import DEFAULTS, ENGINES, HINTS
from app.settings_file import SETTINGS_FILE
from app.web.analysis import Failure
from tests import faults, support

ROOT: Final = Path(__file__).parent.parent
OPENAPI: Final = ROOT / "app" / "web" / "view" / "openapi.json"
ANSWERS: Final = (Prediction, Explanation, ModelCard, Failure, Neighbor)

# The first setting of each group, and the heading of the group.
GROUPS: Final = {
    "model_url": "Your model",
    "proof_url": "Checks and speed",
    "pipeline": "How your notebook made pixels of a photo",
    "labels": "The answer",
    "max_upload_mb": "The server",
    "title": "The page",
}

SETTINGS_HEAD: Final = """# Settings

Set them in a file `settings.toml` in the working directory, or as environment variables `APP_<NAME>`. A
variable overrides the file, and the file overrides the default. `--settings FILE` names another file. Without
any, the server takes the demo's, app/settings.toml, which lists all settings.

A variable separates the items of a list by commas: `APP_CLASSES=cat,dog`. Paths in the file are relative to
its folder; paths in a variable are relative to the working directory.

`APP_<NAME>_FILE` names a file with the value, as Docker and Kubernetes mount secrets; a list has an item on
each line: `APP_API_KEYS_FILE=/run/secrets/keys`.
"""

APPLICATIONS: Final = """
## Several models

With the tables `[models.MODEL.VERSION]` and `[applications.NAME]` one server has several models in several
versions: [applications.md](applications.md) shows a file with them. A version inherits all settings above the
first `[table]` of the file, and may set each one from `model_url` to `unfamiliar_below` for itself. In a
cluster, `replicas = [least, most]` sets how many copies of the version run. Variables override only the
settings above the first `[table]`. An application has these settings:
"""

TOML_HEAD: Final = """# The settings of the demo: ten kinds of garment.
# Write yours into another file, settings.toml at the top of the project, which upgrades leave alone.
# It needs only the lines that you want.

# 1. Your checkpoint: a link to the file (share links too), or a path relative to this file.
{model_url}

# 2. Your classes, in the order of your notebook: `learn.dls.vocab` in fastai v2, `data.classes` in v1.
{classes}

# The demo needs this line, since its file fits two architectures. For other files it has no effect.
{architecture}

# Everything below is optional. Uncomment a line to change it.
# An environment variable APP_<NAME> overrides a line.
"""

ERRORS_HEAD: Final = """# Errors

Every error answer is `application/problem+json` (RFC 9457), or a page in a browser:

```json
{
  "type": "about:blank",
  "title": "Bad Request",
  "status": 400,
  "code": "empty-file",
  "detail": "The file is empty (0 bytes); send a picture.",
  "request_id": "5f0c8a4f2f1f4a57"
}
```

Programs can rely on `status` and `code`. `detail` is for people, and its words may change. The log has one
line with the same `request_id`. The header `Retry-After` counts seconds.

| status | code | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """Return docs/settings.md: a table for each group of settings."""
    lines = [SETTINGS_HEAD]
    for name, hint in HINTS.items():
        if name in GROUPS:
            lines += [
                f"\n## {GROUPS[name]}\n",
                "| setting | default | values | meaning |",
                "|---|---|---|---|",
            ]
        default = "" if DEFAULTS[name] is NODEFAULT else f"`{_toml(DEFAULTS[name])}`"
        lines.append(f"| `{name}` | {default} | {_values(hint)} | {_meta(hint).description} |")
    lines += [APPLICATIONS, "| setting | default | values | meaning |", "|---|---|---|---|"]
    defaults = {field.name: field.default for field in fields(ApplicationSettings)}
    for name, hint in typing.get_type_hints(ApplicationSettings, include_extras=True).items():
        default = "" if defaults[name] is NODEFAULT else f"`{_toml(defaults[name])}`"
        lines.append(f"| `{name}` | {default} | {_values(hint)} | {_meta(hint).description} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def settings_file() -> str:
    """Return app/settings.toml with new comments. Lines that somebody has uncommented stay."""
    found = SETTINGS_FILE.read_text("utf-8")
    set_lines = {line.split()[0]: line for line in found.splitlines() if re.match(r"\w+ = ", line)}
    lines = [TOML_HEAD.format_map(set_lines)]
    for name, hint in HINTS.items():
        if name in ("model_url", "classes", "architecture"):
            continue
        if name in GROUPS:
            lines.append(f"\n# --- {GROUPS[name]} ---\n")
        values = _values(hint).replace("`", "")
        comment = f"{_meta(hint).description}{f' Values: {values}.' if values else ''}"
        lines += [f"# {line}" for line in textwrap.wrap(comment, 108, break_on_hyphens=False)]
        lines.append(set_lines.get(name, f"#{name} = {_toml(DEFAULTS[name])}") + "\n")
    text = "\n".join(lines).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"
    if tomllib.loads(text) != tomllib.loads(found):
        raise ValueError(f"{SETTINGS_FILE} has settings on several lines; write each on one line")
    return text


def _meta(hint: Any) -> Meta:
    """Return the annotation of a setting that has its meaning."""
    return next(m for m in typing.get_args(hint) if isinstance(m, Meta) and m.description)


def _values(hint: Any) -> str:
    """Return the values of a choice, or the range of a number; nothing for the rest."""
    names = ENGINES if hint is HINTS["engine"] else _choices(typing.get_args(hint)[0])
    choices = [f'`"{name}"`' for name in names]
    meta = _meta(hint)
    return ", ".join(choices) if choices or meta.ge is None else f"{meta.ge} to {meta.le}"


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    return [value for part in typing.get_args(kind) for value in _choices(part)]


def _toml(value: object) -> str:
    """Return a default as TOML writes it: as JSON, and a square size as one side."""
    if isinstance(value, tuple) and len(value) == 2:
        return str(value[0])
    return json.dumps(value)


def errors_page() -> str:
    """Return docs/errors.md: every code with its status."""
    rows = [f"| {status} | `{code}` | {meaning} |" for code, (status, meaning) in CODES.items()]
    return ERRORS_HEAD + "\n".join(rows) + "\n"


def openapi() -> str:
    """Return openapi.json with the version, the schemas of the answers and the codes of the errors."""
    document = json.loads(OPENAPI.read_text("utf-8"))
    document["info"]["version"] = __version__
    schemas = document["components"]["schemas"]
    _, answers = msgspec.json.schema_components(ANSWERS, ref_template="#/components/schemas/{name}")
    answers = {name: _plain(schema) for name, schema in answers.items()}
    for schema in answers.values():
        schema["description"] = " ".join(schema["description"].split())
    own = {name: schemas[name] for name in ("Progress", "Problem")}
    own["Problem"]["properties"]["code"]["enum"] = list(CODES)
    document["components"]["schemas"] = answers | own
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _plain(schema: Any) -> Any:
    """Return a schema whose pairs and triples are arrays of one kind; few clients know `prefixItems`."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _plain(value) for key, value in schema.items()}
    if kinds := schema.pop("prefixItems", None):
        schema["items"] = kinds[0]
    return schema


DOCUMENTS: Final[dict[Path, Callable[[], str]]] = {
    ROOT / "docs" / "settings.md": settings_page,
    ROOT / "docs" / "errors.md": errors_page,
    SETTINGS_FILE: settings_file,
    OPENAPI: openapi,
    support.DOCUMENT: support.document,
    faults.DOCUMENT: faults.document,
}

if __name__ == "__main__":
    for path, document in DOCUMENTS.items():
        path.write_text(document(), "utf-8")

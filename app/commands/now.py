"""`python -m app now`: open the model, stage the project in a clean folder, and deploy it to Vercel.

The staged files are listed here, so no tests, notes or old downloads are sent. The staged settings are those
that opened the model: file and environment together.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Final

from msgspec.structs import replace

from app.commands.export import export
from app.commands.fetch import opened
from app.errors import DeployError, SettingsError, ToolMissing
from app.fetching.links import is_url
from app.settings import DEFAULTS, HINTS, PLACES, Settings
from app.settings_file import SETTINGS_FILE, load_catalog

APP: Final = SETTINGS_FILE.parent
ROOT: Final = APP.parent
BESIDE_APP: Final = ("Dockerfile", "LICENSE", "requirements.txt", "requirements-serve.txt")
FREE_PLAN: Final = 100_000_000  # bytes that Vercel's Hobby plan takes from the command line
ELSEWHERE: Final = "docs/deploy.md names other hosts for the same Dockerfile"
FLAGS: Final = re.IGNORECASE | re.MULTILINE
# the output of Vercel's command line when it fails -> the meaning, and the remedy
REFUSALS: Final = (
    (
        r"^npm (ERR!|error)",
        "npx could not bring Vercel's command line, for the reason that npm gives above. Try "
        "`npm install --global vercel` until it succeeds, then this again.",
    ),
    (
        r"credentials|not authenticated|log ?in|token.{0,20}(invalid|not valid)",
        "You are not logged in to Vercel: run `npx vercel login`, then this again.",
    ),
    (
        r"\bplan\b|upgrade|payment|billing|permission|forbidden|not available|limit",
        f"Your plan or account at Vercel does not allow this, for the reason above; {ELSEWHERE}.",
    ),
)


def say(line: str) -> None:
    """Print at once, in order with the output of Vercel's command line."""
    print(line, flush=True)


def run(options: argparse.Namespace) -> int:
    """Deploy to Vercel as the project `options.name`, and print the link.

    `options.vercel` goes to Vercel's command line. `options.dry_run` shows the files and sends nothing.
    `options.static` deploys the page that answers in the browser, without a server.
    Raises StartupError if the model could not be served, ToolMissing without the command line, and
    DeployError if it fails.
    """
    catalog = load_catalog(options.settings)
    settings = catalog.settings
    if catalog.applications:
        raise SettingsError(
            "The settings have [applications], but Vercel gets one model: name a file with one (--settings); "
            f"or build the image, which serves all of them: {ELSEWHERE}."
        )
    if settings.engine != DEFAULTS["engine"]:
        raise SettingsError(
            f'engine is "{settings.engine}", but the image that Vercel builds has no torch. Take that '
            f"line out; or build the image with --target full: {ELSEWHERE}."
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / _project(options.name or ROOT.name)
        command = [] if options.dry_run else _command_line()
        say(f"settings    {options.settings}")
        if options.static:
            _write_static(settings, folder)
        else:
            card = opened(settings)
            say(f"checkpoint  {card.architecture}, {_megabytes(card.bytes)}: it opens, and answers")
            say(f"classes     {len(card.classes)}, as many as it has: {', '.join(card.classes)[:80]}")
            stage(settings, folder)
        _describe(folder)
        if options.dry_run:
            _show(folder)
            return 0
        if not options.static:
            say("vercel      builds the image; the first time takes some minutes")
        command += ["deploy", "--yes", "--json", *(["--prod"] if options.prod else []), *options.vercel]
        say(_links(_run(command, folder), static=options.static))
    return 0


def _write_static(settings: Settings, folder: Path) -> None:
    """Write the static site of the model into the new `folder`. Raises StartupError."""
    exported = folder.with_name("export")
    written = export(settings, exported, ["web"])
    say(f"model       {_megabytes(written.model_bytes)}: it gives the server's answers, in the browser")
    (exported / "web").rename(folder)


def _show(folder: Path) -> None:
    """Print the files, and the configuration in them."""
    for path in _files(folder):
        say(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")
    for path in (folder / "vercel.json", folder / "app" / SETTINGS_FILE.name):
        if path.exists():
            say(f"\n{path.relative_to(folder)}:\n{path.read_text('utf-8')}")


def stage(settings: Settings, folder: Path) -> None:
    """Write all files of the image into the new `folder`, and its configuration as vercel.json.

    Files that the settings name on this machine are copied too: checkpoint, proof, samples.
    """
    folder.mkdir()
    for name in BESIDE_APP:
        shutil.copy2(ROOT / name, folder)
    for path in _application():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    models = folder / "app" / "models"
    models.mkdir()
    for graph in (APP / "models").glob("*.onnx"):  # made with torch, which the image does not have
        if graph.with_suffix(".json").exists():
            shutil.copy2(graph, models)
            shutil.copy2(graph.with_suffix(".json"), models)
    places: dict[str, Any] = {}
    for setting in PLACES:
        location = getattr(settings, setting)
        if location and not is_url(location):
            places[setting] = _carry(Path(location).resolve(), folder / "app")
    staged = replace(settings, **places)
    (folder / "app" / SETTINGS_FILE.name).write_text(as_toml(staged), "utf-8")
    shutil.copy2(ROOT / "now.json", folder / "vercel.json")


def _carry(source: Path, app: Path) -> str:
    """Copy a file or folder that a setting names into the staged `app`, and return its path there.

    A path inside app/ stays the same; others go to models/own.
    """
    inside = source.relative_to(APP.resolve()) if source.is_relative_to(APP.resolve()) else None
    target = app / (inside or Path("models", "own", source.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
    return target.relative_to(app).as_posix()


def _application() -> Iterator[Path]:
    """Yield the files of app/, without hidden, compiled, downloaded and separately staged ones."""
    for path in APP.rglob("*"):
        inside = path.relative_to(APP)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if path.is_file() and not hidden and inside.parts[0] not in ("models", SETTINGS_FILE.name):
            yield path


def _project(name: str) -> str:
    """Return a name with the characters that Vercel allows for a project."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "classifier"


def _describe(folder: Path) -> None:
    sizes = [path.stat().st_size for path in _files(folder)]
    say(f"files       {len(sizes)}, {_megabytes(sum(sizes))}, as the project {folder.name}")
    if sum(sizes) > FREE_PLAN:
        say(
            f"            Vercel's free plan takes {_megabytes(FREE_PLAN)} from the command line: put the "
            "checkpoint behind a link, and set model_url to it"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(filter(Path.is_file, folder.rglob("*")))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _command_line() -> list[str]:
    """Return the command that starts Vercel's command line. Raises ToolMissing."""
    if vercel := shutil.which("vercel"):
        return [vercel]
    if npx := shutil.which("npx"):
        return [npx, "--yes", "vercel@latest"]  # Vercel ends the support of old ones
    raise ToolMissing(
        "This needs Vercel's command line, but neither vercel nor npx is installed. Install Node.js, which "
        f"brings npx, from https://nodejs.org, then run this command again; {ELSEWHERE}."
    )


def _run(command: list[str], folder: Path) -> str:
    """Return the standard output of a command, and show its standard error. Raises DeployError."""
    log = bytearray()
    with (
        TemporaryFile() as output,
        # found on the PATH above, and started without a shell
        subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.PIPE) as process,  # noqa: S603
    ):
        # in chunks, since a progress bar or a question does not end in a newline
        while chunk := os.read(process.stderr.fileno(), 4096):  # type: ignore[union-attr]  # it is a pipe
            log += chunk
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
        if code := process.wait():
            said = log.decode(errors="replace")
            meanings = (meaning for pattern, meaning in REFUSALS if re.search(pattern, said, FLAGS))
            raise DeployError(
                next(meanings, f"Vercel's command line failed, for the reason above; {ELSEWHERE}."), code
            )
        output.seek(0)
        return output.read().decode(errors="replace")


def _links(output: str, *, static: bool) -> str:
    """Return the link in the JSON of Vercel's command line, and a command that tries it."""
    try:
        report = json.loads(output)
        deployment = report.get("deployment", report)  # nested, if it detects that a program runs it
        production = deployment.get("productionUrl")
        url = production or deployment["url"]
    except (ValueError, LookupError, AttributeError):
        return f"It is online, but the output of Vercel has no link: {output.strip()[:300]!r}"
    lines = ["", url] if static else ["", url, f"curl -F file=@photo.jpg {url}/analyze"]
    if not production:
        lines.append(
            "This is a preview, which only you can see, unless you switch off the project's Deployment "
            "Protection. For everybody: add the option --prod"
        )
    return "\n".join(lines)


def as_toml(settings: Settings) -> str:
    """Return the text of a settings.toml with the same values, without the defaults."""
    lines = []
    for name in filter(settings.is_set, HINTS):
        # TOML writes texts, numbers and lists as JSON does, except one character
        text = json.dumps(getattr(settings, name), ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{name} = {text}\n")
    return "".join(lines)

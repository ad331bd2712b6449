"""Files that stand beside a downloaded one, at the same host and path: its configuration, its weights."""

import dataclasses
import os
import secrets
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from app.errors import DownloadError, NotTheFile
from app.fetching.links import direct, is_url

if TYPE_CHECKING:
    from app.fetching.transfer import Progress


def name_of(location: str) -> str:
    """Return the name of the file at a link or a path; for some share links it is not the file's."""
    return (
        unquote(PurePosixPath(urlsplit(direct(location)).path).name)
        if is_url(location)
        else Path(location).name
    )


async def fetch_beside(
    location: str, kept: Path, names: Sequence[str], *, required: bool, progress: "Progress", size: int = 0
) -> Path:
    """Return the folder of the files `names` beside the one at `location`, whose copy is at `kept`.

    For a path, it is the folder there. For a link, the files are downloaded once, each up to `size`
    bytes, if that is not 0. If one is not there and is not `required`, its copy is empty. Raises
    DownloadError.
    """
    if not is_url(location):
        return Path(location).parent
    folder = kept.with_suffix(".beside")
    for name in names:
        if not os.access(folder / name, os.R_OK):
            try:
                await _fetch_one(_link(location, name), folder / name, progress, size)
            except NotTheFile:
                if required:
                    raise
                (folder / name).touch()
            except OSError as error:
                raise DownloadError(
                    f"{name} cannot be kept ({error.strerror or error}): make room."
                ) from error
    return folder


def _link(location: str, name: str) -> str:
    parts = urlsplit(direct(location))
    path = str(PurePosixPath(parts.path).with_name(quote(name)))
    return parts._replace(path=path).geturl()


async def _fetch_one(url: str, path: Path, progress: "Progress", size: int) -> None:
    """Download a file: it gets its name when it is whole."""
    from app.fetching.transfer import LIMITS, transfer  # aiohttp, as in download

    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        limits = dataclasses.replace(LIMITS, size=size) if size else LIMITS
        await transfer(url, temporary, progress, limits)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

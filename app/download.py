"""Get the checkpoint: from an https link, once, whole or not at all; or from a path on this machine.

Knows nothing of checkpoints: `verify` says whether what arrived is to be kept.
"""

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import aiohttp

from app.errors import ChecksumMismatch, DownloadError, StartupError

CHUNK: Final = 1 << 20
STALL: Final = 30.0  # seconds without a byte, after which the host is given up
TOTAL: Final = 1800.0  # seconds for the whole file: 100 MB at 60 kB/s
MAX_BYTES: Final = 2_000_000_000  # above any image classifier's checkpoint
MAX_REDIRECTS: Final = 10

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known
Content = TypeVar("Content")


@dataclass(frozen=True)
class Fetched(Generic[Content]):
    """A file that is here and passed: where, its sha256 (hexadecimal), and what `verify` made of it."""

    path: Path
    sha256: str
    content: Content


def is_url(location: str) -> bool:
    """Whether it is a link; everything else is a path."""
    return location.lower().startswith(("http://", "https://"))


def cache_path(url: str, folder: Path) -> Path:
    """Where the file behind a link is kept: nothing of the link becomes part of the path but its hash."""
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.download"


async def fetch(
    location: str,
    folder: Path,
    *,
    sha256: str = "",
    verify: Callable[[Path], Content],
    progress: Progress,
) -> Fetched[Content]:
    """The file at `location`, a link or a path, and what `verify` makes of it; a link is downloaded into
    `folder` unless it was before.

    A download goes to a temporary file of this process, is checked (size, `sha256`, `verify`) and only then
    takes its final name: a reader never meets a half file. Raises DownloadError, ChecksumMismatch, and
    whatever `verify` raises.
    """
    if not is_url(location):
        path = Path(location)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise DownloadError(
                f"{path} {what}; the path of a file was expected, or a link that begins with https://."
            )
        return await asyncio.to_thread(_check, path, sha256, location, verify)
    path = cache_path(location, folder)
    if path.exists():
        try:
            return await asyncio.to_thread(_check, path, sha256, location, verify)
        except StartupError as error:
            logger.warning("the kept file is not used but downloaded again: %s", error)
    _make_folder(folder)
    return await _download(location, path, sha256, verify, progress)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> DownloadError:
    return DownloadError(f"The download cannot be kept in {folder}: {error.strerror or error}.")


async def _download(
    url: str, path: Path, sha256: str, verify: Callable[[Path], Content], progress: Progress
) -> Fetched[Content]:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        await _stream(url, temporary, progress)
        await asyncio.to_thread(_check, temporary, sha256, url, verify)
        os.replace(temporary, path)
        # read anew: Windows renames no file that is still mapped
        return await asyncio.to_thread(_check, path, sha256, url, verify)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        temporary.unlink(missing_ok=True)


async def _stream(url: str, path: Path, progress: Progress) -> None:
    """Write what the link gives to `path`. Raises DownloadError, naming the host and what it answered."""
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]  # for messages: no path, no password
    timeout = aiohttp.ClientTimeout(total=TOTAL, sock_connect=STALL, sock_read=STALL)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.get(
                url, max_redirects=MAX_REDIRECTS, headers={"Accept-Encoding": "identity"}
            ) as response,
        ):
            if response.status != 200:
                raise DownloadError(
                    f"{host} answered {response.status} {response.reason} for model_url; a 200 with the file "
                    "was expected. Open the link in a private browser window: it must download without "
                    "signing in."
                )
            hops = [hop.url.scheme for hop in (*response.history, response)]
            if url.lower().startswith("https:") and set(hops) != {"https"}:
                raise DownloadError(
                    f"{host} redirects to http, where anybody could change the file; use another link."
                )
            received = await _write(response, path, progress)
            if response.content_length not in (None, received):
                raise DownloadError(
                    f"{host} announced {response.content_length:,} bytes and sent {received:,}; start again."
                )
    except TimeoutError as error:
        raise DownloadError(
            f"{host} sent nothing for {STALL:.0f} s, or not all within {TOTAL:.0f} s."
        ) from error
    except ValueError as error:  # aiohttp.InvalidURL, and names that cannot be encoded
        raise DownloadError(f"model_url is no valid link: {url[:200]}") from error
    except aiohttp.ClientError as error:
        raise DownloadError(
            f"{host} could not be read ({type(error).__name__}: {str(error)[:200]})."
        ) from error


async def _write(response: aiohttp.ClientResponse, path: Path, progress: Progress) -> int:
    received = 0
    with path.open("xb") as file:
        async for chunk in response.content.iter_chunked(CHUNK):
            received += len(chunk)
            if received > MAX_BYTES:
                raise DownloadError(
                    f"The file has over {MAX_BYTES:,} bytes; no image classifier needs so many."
                )
            file.write(chunk)
            progress(received, response.content_length)
        file.flush()
        os.fsync(file.fileno())
    return received


def _check(path: Path, expected: str, location: str, verify: Callable[[Path], Content]) -> Fetched[Content]:
    """The file, if its sha256 is the `expected` one. Raises DownloadError and what `verify` raises."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if expected not in ("", found):
        raise ChecksumMismatch(
            f"The file at {location} has the sha256 {found}, but model_sha256 is {expected}: it is not the "
            "file that was meant. Correct the link, or the setting."
        )
    return Fetched(path, found, verify(path))

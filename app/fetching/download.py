"""Get a file: from a link, once, whole or not at all; or from a path on this machine.

Knows nothing of checkpoints: `verify` decides whether the file is kept.
"""

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from app.errors import ChecksumMismatch, DownloadError, StartupError
from app.fetching.links import direct, host, is_url

if TYPE_CHECKING:
    from app.fetching.transfer import Limits, Progress

# A living download changes its file more often: it is silent for 30 s at most, and waits 120 s between two
# tries. Not by process id: containers that share a volume have the same ones. Not by a lock: network file
# systems pretend to have them.
LEFTOVER: Final = 600.0  # seconds
PIECE: Final = 4_000_000  # bytes

logger = logging.getLogger(__name__)

Content = TypeVar("Content")


class Fetched(Struct, Generic[Content], frozen=True):
    """A file on this machine that passed its checks, and its content as `verify` read it."""

    path: Path
    content: Content
    digest: Future[str]

    @property
    def sha256(self) -> str:
        """Wait for the hexadecimal digest, which takes as long as all other reading. Raises DownloadError."""
        return self.digest.result()


def cache_path(url: str, folder: Path) -> Path:
    """Return the path of the file behind a link: only the hash of the link is part of it."""
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.download"


async def fetch(
    location: str,
    folder: Path,
    *,
    sha256: str = "",
    verify: Callable[[Path], Content],
    progress: "Progress",
    limits: "Limits | None" = None,
) -> Fetched[Content]:
    """Get the file at `location`, a link or a path, and read it with `verify`.

    A download is kept in `folder`, or in a folder for temporary files where that cannot be written, and is
    not repeated.

    A download goes to a temporary file of this process, is checked (size, `sha256`, `verify`) and only then
    takes its final name: no reader ever finds half a file. Raises DownloadError, ChecksumMismatch, and the
    errors of `verify`.
    """
    if not is_url(location):
        return await asyncio.to_thread(_check, _existing(location), sha256, f"at {location}", verify)
    url = direct(location)
    _announce(location, url)
    check = partial(_check, expected=sha256, where=f"from {host(url)}", verify=verify)
    places: tuple[Callable[[], Path], ...] = (lambda: folder, temporary_folder)
    refusals = []
    for place in places:
        try:
            return await _fetch_into(cache_path(location, place()), url, check, progress, limits)
        except OSError as error:  # of the disk: errors of the network are DownloadErrors by then
            refusals.append(error.strerror or str(error))
            logger.warning("the download cannot be kept where it should be: %s", refusals[-1])
    raise DownloadError(
        f"The download can be kept nowhere: not in {folder} ({refusals[0]}), and not in the folder for "
        f"temporary files ({refusals[1]}). Make room, or let one of them be written."
    )


def _existing(location: str) -> Path:
    path = Path(location)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DownloadError(
            f"{path} {found}; the path of a file was expected, or a link that begins with https://."
        )
    return path


async def _fetch_into(
    path: Path,
    url: str,
    check: Callable[[Path], Fetched[Content]],
    progress: "Progress",
    limits: "Limits | None",
) -> Fetched[Content]:
    """Check the kept file at `path`; download it from `url` if there is none or it fails.

    Raises OSError where the disk cannot take it.
    """
    if os.access(path, os.R_OK):
        try:
            return await asyncio.to_thread(check, path)
        except StartupError as error:
            logger.warning("the kept file is not used but downloaded again: %s", error)
    # aiohttp is a fifth of the start: a kept file does without
    from app.fetching.transfer import LIMITS, transfer

    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        await transfer(url, temporary, progress, limits or LIMITS)
        await asyncio.to_thread(lambda: check(temporary).sha256)  # all is read: Windows renames no open file
        os.replace(temporary, path)
        return await asyncio.to_thread(check, path)  # read again: Windows renames no file that is mapped
    finally:
        temporary.unlink(missing_ok=True)


def temporary_folder() -> Path:
    """Make a folder for temporary files that only this user can write: no other user can plant a file.

    Raises OSError.
    """
    user = (
        os.getuid() if hasattr(os, "getuid") else 0
    )  # on Windows each user has temporary files of their own
    folder = Path(tempfile.gettempdir()) / f"fastai-now-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user:
        raise PermissionError(errno.EACCES, f"{folder} belongs to somebody else")
    logger.warning("the download is kept in %s, for as long as temporary files are kept", folder)
    return folder


def _sweep(folder: Path) -> None:
    """Remove the parts of killed downloads."""
    for path in folder.glob("*.download.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - path.stat().st_mtime > LEFTOVER:
                path.unlink()
                logger.info("removed the part of a killed download: %s", path.name)


def _announce(location: str, url: str) -> None:
    """Log the peculiarities of a link; only its host is shown, as the rest may be secret."""
    if url != location:
        logger.info("a share link: the file itself is at %s", host(url))
    if url.lower().startswith("http:") and not _is_this_machine(urlsplit(url).hostname or ""):
        logger.warning(
            "%s is asked over http, where the file can be changed on the way: use https, or set model_sha256",
            host(url),
        )


def _is_this_machine(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name
        return False


def _check(path: Path, expected: str, where: str, verify: Callable[[Path], Content]) -> Fetched[Content]:
    """Read the file if its sha256 is `expected`. Raises DownloadError and the errors of `verify`."""
    beside, passed = ThreadPoolExecutor(1), False
    try:
        digest = beside.submit(_digest, path)
        if expected:  # another file would not even be read
            _check_sum(digest.result(), expected, where)
        content = verify(path)
        passed = True
        return Fetched(path, content, digest)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        beside.shutdown(wait=not passed)  # a file that is removed must be closed, on Windows


def _digest(path: Path) -> str:
    """Compute the sha256. The pieces are large: between two of them the GIL may be busy."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> DownloadError:
    return DownloadError(f"{path} cannot be read: {error.strerror or error}.")


def _check_sum(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise ChecksumMismatch(
            f"The file {where} has the sha256 {found}, but model_sha256 is {expected}: it is "
            "another file. Correct the link, or the setting."
        )

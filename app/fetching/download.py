"""Get a file: from a link, once, whole or not at all; or from a path on this machine.

Knows nothing of checkpoints: `verify` says whether what arrived is to be kept.
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
    """A file that is here and passed: where, and what `verify` made of it."""

    path: Path
    content: Content
    digest: Future[str]

    @property
    def sha256(self) -> str:
        """In hexadecimal. Waits until it is known: it takes as long as all other reading. Raises
        DownloadError.
        """
        return self.digest.result()


def cache_path(url: str, folder: Path) -> Path:
    """Where the file behind a link is kept: nothing of the link becomes part of the path but its hash."""
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
    """The file at `location`, a link or a path, and what `verify` makes of it; what a link gives is kept in
    `folder`, or in a folder for temporary files where that cannot be written, and not downloaded twice.

    A download goes to a temporary file of this process, is checked (size, `sha256`, `verify`) and only then
    takes its final name: a reader never meets a half file. Raises DownloadError, ChecksumMismatch, and
    whatever `verify` raises.
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
        except OSError as error:  # of the disk: those of the network are DownloadErrors by then
            refusals.append(error.strerror or str(error))
            logger.warning("the download cannot be kept where it should be: %s", refusals[-1])
    raise DownloadError(
        f"The download can be kept nowhere: not in {folder} ({refusals[0]}), and not in the folder for "
        f"temporary files ({refusals[1]}). Make room, or let one of them be written."
    )


def _existing(location: str) -> Path:
    path = Path(location)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DownloadError(
            f"{path} {what}; the path of a file was expected, or a link that begins with https://."
        )
    return path


async def _fetch_into(
    path: Path,
    url: str,
    check: Callable[[Path], Fetched[Content]],
    progress: "Progress",
    limits: "Limits | None",
) -> Fetched[Content]:
    """What is kept at `path` if it passes, else what `url` gives, kept there. Raises OSError where the disk
    cannot take it.
    """
    if os.access(path, os.R_OK):
        try:
            return await asyncio.to_thread(check, path)
        except StartupError as error:
            logger.warning("the kept file is not used but downloaded again: %s", error)
    # aiohttp is a fifth of the start: who has the file already needs none
    from app.fetching.transfer import LIMITS, transfer

    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        await transfer(url, temporary, progress, limits or LIMITS)
        await asyncio.to_thread(lambda: check(temporary).sha256)  # all is read: Windows renames no open file
        os.replace(temporary, path)
        return await asyncio.to_thread(check, path)  # read anew: Windows renames no file that is mapped
    finally:
        temporary.unlink(missing_ok=True)


def temporary_folder() -> Path:
    """A folder among the temporary files that only this user can write, so that nobody else lays a file there
    for us to find. Raises OSError.
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
    """Remove what killed downloads left."""
    for path in folder.glob("*.download.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - path.stat().st_mtime > LEFTOVER:
                path.unlink()
                logger.info("removed what a killed download left: %s", path.name)


def _announce(location: str, url: str) -> None:
    """Say what is odd about a link; of the link itself no more than its host, as the rest may be secret."""
    if url != location:
        logger.info("a share link: the file itself is at %s", host(url))
    if url.lower().startswith("http:") and not _is_this_machine(urlsplit(url).hostname or ""):
        logger.warning(
            "%s is asked over http, where anybody on the way can change the file: use https, or set a sha256",
            host(url),
        )


def _is_this_machine(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name
        return False


def _check(path: Path, expected: str, where: str, verify: Callable[[Path], Content]) -> Fetched[Content]:
    """The file, if its sha256 is the `expected` one. Raises DownloadError and what `verify` raises."""
    beside, passed = ThreadPoolExecutor(1), False
    try:
        digest = beside.submit(_digest, path)
        if expected:  # what may be another file is not read before that is known
            _check_sum(digest.result(), expected, where)
        content = verify(path)
        passed = True
        return Fetched(path, content, digest)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        beside.shutdown(wait=not passed)  # what is to be removed must not be open: Windows would refuse


def _digest(path: Path) -> str:
    """The sha256. Read in large pieces: between two of them Python's lock may have to be waited for."""
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
            f"The file {where} has the sha256 {found}, but model_sha256 is {expected}: it is not the "
            "file that was meant. Correct the link, or the setting."
        )

"""One file over HTTP, to its end: redirects, retries that resume, deadlines.

Knows neither the kind of the file, nor its place and name on this machine.
"""

import asyncio
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

import aiohttp

from app.errors import DownloadError, DownloadInterrupted, NotTheFile, plain
from app.fetching.links import behind_page, host, is_page

CHUNK: Final = 1 << 20
PAGE_BYTES: Final = 1 << 20  # of a web page, to find its form; Drive's has 2 kB
MAX_REDIRECTS: Final = 10
REDIRECTS: Final = (301, 302, 303, 307, 308)
RETRYABLE: Final = (408, 425, 429, 500, 502, 503, 504)  # a later try may get another answer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of a transfer; seconds and bytes."""

    tries: int = 5
    delay: float = 1.0  # before the second try, and twice as long before each further one
    longest_wait: float = 120.0  # even if Retry-After asks for more: somebody waits for the server
    stall: float = 30.0  # without a byte
    total: float = 1800.0  # for the whole file and all tries: 100 MB at 60 kB/s
    size: int = 2_000_000_000  # above any image classifier's checkpoint


LIMITS: Final = Limits()


@dataclass
class PartialDownload:
    """The part of a file that has arrived, and the request for the rest of the same file."""

    file: BinaryIO
    progress: Progress
    limits: Limits
    received: int = 0
    total: int | None = None
    validator: str = ""  # an ETag or a date for If-Range; without one the next try starts over

    def headers(self) -> dict[str, str]:
        """Return the headers that ask for the whole file, or for the rest of it."""
        asked = {"Accept-Encoding": "identity", "Accept-Language": "en"}  # the titles of pages are read
        if self.received and self.validator:
            asked |= {"Range": f"bytes={self.received}-", "If-Range": self.validator}
        return asked

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """Expect the whole file, and drop the bytes so far. Raises DownloadError, and OSError."""
        self.file.seek(0)
        self.file.truncate()
        self.received = 0
        self.validator = _validator(response)
        self._expect(response.content_length)

    def resume(self, response: aiohttp.ClientResponse) -> None:
        """Expect the rest. Raises DownloadInterrupted, to start over, where the answer is another file."""
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        begins = place is not None and int(place[1]) == self.received
        size = int(place[2]) if place and place[2] != "*" else self.total
        if not begins or self.total not in (None, size) or _validator(response) not in ("", self.validator):
            self.validator = ""
            raise DownloadInterrupted(f"{host(str(response.url))} resumed with another file")
        self._expect(size)

    def _expect(self, total: int | None) -> None:
        """Refuse a file that is too large, or larger than the free disk, before its bytes arrive."""
        self.total = total
        if total is not None:
            self._check_size(total)
            free = shutil.disk_usage(Path(self.file.name).parent).free
            if total - self.received > free:
                raise OSError(errno.ENOSPC, f"{free:,} bytes are free, the file has {total:,}")

    async def add(self, chunk: bytes) -> None:
        """Write the bytes that arrived. Raises DownloadError if they are too many, and OSError."""
        self._check_size(self.received + len(chunk))
        await asyncio.to_thread(self.file.write, chunk)
        self.received += len(chunk)
        self.progress(self.received, self.total)

    def _check_size(self, size: int) -> None:
        if size > self.limits.size:
            raise DownloadError(
                f"The file has over {self.limits.size:,} bytes; no image classifier needs so many."
            )

    def write_out(self) -> None:
        """Flush the file to the disk, before it gets its name. Raises OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())


async def transfer(url: str, path: Path, progress: Progress, limits: Limits = LIMITS) -> None:
    """Download `url` to `path`, where nothing is yet.

    Raises DownloadError, which names the host and no more of the link, and OSError where the disk refuses.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.stall, sock_read=limits.stall)
    with path.open("xb") as file:
        part = PartialDownload(file, progress, limits)
        try:
            async with (
                asyncio.timeout(limits.total),
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            ):
                await _retry(session, url, part)
        except TimeoutError as error:
            raise DownloadError(
                f"{host(url)} sent {part.received:,} bytes within {limits.total:.0f} s, and that is not all; "
                "keep the file at a faster host."
            ) from error
        await asyncio.to_thread(part.write_out)


async def _retry(session: aiohttp.ClientSession, url: str, part: PartialDownload) -> None:
    """Try until the file is whole. Raises DownloadError."""
    limits = part.limits
    for number in range(1, limits.tries + 1):
        try:
            return await _try(session, url, part)
        except DownloadInterrupted as error:
            if number == limits.tries:
                raise DownloadError(
                    f"{error}, the last of {number} tries. Check the link, or start again later."
                ) from error
            backoff = limits.delay * 2 ** (number - 1) * secrets.SystemRandom().uniform(0.5, 1)
            wait = max(backoff, min(error.retry_after, limits.longest_wait))
            logger.warning("%s; try %d of %d in %.0f s", error, number + 1, limits.tries, wait)
        os.utime(part.file.name)  # alive: leftovers are swept by their last change
        await asyncio.sleep(wait)


async def _try(session: aiohttp.ClientSession, url: str, part: PartialDownload) -> None:
    """Try once. aiohttp's errors become DownloadInterrupted or, where another try would not help,
    DownloadError; an OSError that is left is the disk's.
    """
    at = host(url)
    try:
        await _receive(session, url, part)
    except aiohttp.ClientSSLError as error:
        raise DownloadError(f"{at} has no valid certificate ({plain(error)}).") from error
    except TimeoutError as error:
        raise DownloadInterrupted(f"{at} sent nothing for {part.limits.stall:.0f} s") from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as error:
        so_far = f" after {part.received:,} bytes" if part.received else ""
        raise DownloadInterrupted(
            f"{at} could not be read{so_far} ({type(error).__name__}: {plain(error)})"
        ) from error
    except (aiohttp.ClientError, UnicodeError) as error:  # not HTTP, and names that cannot be encoded
        raise DownloadError(f"{at} could not be read ({type(error).__name__}).") from error


async def _receive(
    session: aiohttp.ClientSession, url: str, part: PartialDownload, *, pages: bool = True
) -> None:
    """Ask for the file, or for its rest, and take it; once, also from behind the form of a page."""
    async with await _follow(session, url, part.headers()) as response:
        _check_answer(response, part)
        start = await _upto(response, 512)  # enough to tell a page from a file
        if response.status == 206 or not is_page(response.content_type, start):
            return await _write_body(response, start, part)
        text = (start + await _upto(response, PAGE_BYTES)).decode(errors="replace")
    target = behind_page(str(response.url), text)
    if not pages:
        raise DownloadError(f"{host(target)} shows one page after another; the file itself was expected.")
    await _receive(session, target, part, pages=False)


async def _follow(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    """Follow all redirects; one from https to http is refused before it is followed."""
    for _ in range(MAX_REDIRECTS + 1):
        response = await session.get(url, headers=headers, allow_redirects=False)
        location = response.headers.get("Location")
        if response.status not in REDIRECTS or not location:
            return response
        response.release()
        try:
            target = urljoin(str(response.url), location)
            before, after = urlsplit(url).scheme, urlsplit(target).scheme
        except ValueError as error:  # half an IPv6 address, for one
            raise DownloadError(
                f"{host(url)} redirects to {plain(location)}, which is not a link."
            ) from error
        if after not in {"https", before}:
            raise DownloadError(
                f"{host(url)} redirects from {before} to {after}, where anybody could change the file; use "
                "another link."
            )
        url = target
    raise DownloadError(f"{host(url)} redirects more than {MAX_REDIRECTS} times; use the link of the file.")


def _check_answer(response: aiohttp.ClientResponse, part: PartialDownload) -> None:
    """Check that the answer is the file, or the requested rest of it. Raises DownloadError."""
    at, status = host(str(response.url)), response.status
    if status in RETRYABLE:
        raise DownloadInterrupted(f"{at} answered {status} {plain(response.reason)}", _retry_after(response))
    asked_for_rest = "Range" in part.headers()
    if status == 416 and asked_for_rest:
        part.validator = ""
        raise DownloadInterrupted(f"{at} has no rest of the file")
    if status != 200 and not (status == 206 and asked_for_rest):
        raise NotTheFile(
            f"{at} answered {status} {plain(response.reason)}; a 200 with the file was expected. Open the "
            "link in a private browser window: it must download without signing in."
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{at} sends the file compressed against the request; use another host.")


async def _write_body(response: aiohttp.ClientResponse, start: bytes, part: PartialDownload) -> None:
    """Write the body, which begins with `start`. Raises DownloadError, and OSError."""
    if response.status == 200:
        part.begin(response)
    else:
        part.resume(response)
    await part.add(start)
    async for chunk in response.content.iter_chunked(CHUNK):
        await part.add(chunk)
    if part.total not in (None, part.received):
        raise DownloadInterrupted(
            f"{host(str(response.url))} announced {part.total:,} bytes and sent {part.received:,}"
        )


async def _upto(response: aiohttp.ClientResponse, size: int) -> bytes:
    """Read the next `size` bytes of the body, fewer at its end."""
    data = b""
    while len(data) < size and (more := await response.content.read(size - len(data))):
        data += more
    return data


def _validator(response: aiohttp.ClientResponse) -> str:
    """Return the validator for If-Range: a strong ETag, or a date old enough to be strong; else nothing.

    RFC 9110, 8.8.2.2 and 13.1.5.
    """
    tag = response.headers.get("ETag", "")
    if tag:
        return "" if tag.startswith("W/") else tag
    modified, now = (response.headers.get(name, "") for name in ("Last-Modified", "Date"))
    age = _seconds_between(modified, now)
    return modified if age is not None and age >= 1 else ""


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Return the seconds that the host asks to wait; 0 if it does not tell."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    return _seconds_between(datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), text) or 0


def _seconds_between(first: str, second: str) -> float | None:
    """Return the seconds between two dates of HTTP headers; None where one is invalid."""
    try:
        return (parsedate_to_datetime(second) - parsedate_to_datetime(first)).total_seconds()
    except (TypeError, ValueError):  # an invalid date; or one date with a time zone, one without
        return None

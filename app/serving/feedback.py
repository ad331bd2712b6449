"""Photos to which visitors give a class, in folders that `check` and `ImageDataLoaders.from_folder` read.

Knows nothing of HTTP. Names of folders are classes of the model, and names of files are made here.
"""

import asyncio
import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from app.errors import FeedbackFull, SettingsError, plain
from app.settings import MAX_FEEDBACK, Settings

MAX_BYTES: Final = 500_000_000
DAY: Final = 24 * 3600  # seconds
# in a name that some file system does not take: separators, the devices of Windows, hidden files
UNFIT: Final = re.compile(
    r'[\x00-\x1f\ud800-\udfff<>:"/\\|?*]|^[. ]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE
)
SERVED: Final = (Path(__file__).parent.parent / "web" / "view").resolve()  # the page's own files
MAX_NAME: Final = 200  # bytes
KEY: Final = re.compile(r"[0-9a-f]{32}")


class Feedback(Protocol):
    """A place for photos with their classes."""

    async def give(self, label: str, photo: bytes) -> str:
        """Keep a JPEG as one of the class `label`; return the key to withdraw it, or "".

        Raises RequestError.
        """

    async def withdraw(self, key: str) -> bool:
        """Delete the photo of a key; return whether there was one."""

    async def sweep(self) -> None:
        """Delete the photos whose time is over."""


def open_feedback(settings: Settings, classes: Sequence[str]) -> Feedback | None:
    """Return the place that the setting `feedback` names; None if it is off. Raises SettingsError."""
    if not settings.feedback:
        return None
    if settings.feedback.startswith("https://"):
        return FeedbackAddress(settings.feedback)
    return FeedbackFolder(Path(settings.feedback), classes, settings.feedback_days)


class FeedbackAddress:
    """An address of the owner, which keeps what it gets."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sending = asyncio.Semaphore(4)

    async def give(self, label: str, photo: bytes) -> str:
        """Send the photo; see Feedback."""
        from app.fetching.delivery import deliver  # importing aiohttp would be a fifth of the start

        async with self._sending:
            await deliver(self._url, label, photo)
        return ""

    async def withdraw(self, key: str) -> bool:
        """Return False: the photo is not here."""
        return False

    async def sweep(self) -> None:
        """Do nothing."""


class FeedbackFolder:
    """A folder with a sub-folder for each class: MAX_FEEDBACK in MAX_BYTES at most, each for some days."""

    def __init__(self, folder: Path, classes: Sequence[str], days: int) -> None:
        """Make the folder if need be. Raises SettingsError if it, or the name of a class, is unfit."""
        for name in classes:
            if UNFIT.search(name) or len(name.encode("utf-8", "replace")) > MAX_NAME:
                raise SettingsError(
                    "feedback keeps photos in folders named after the classes, and "
                    f"'{plain(name)}' cannot be the name of a folder. Rename the class, or remove feedback."
                )
        if folder.resolve().is_relative_to(SERVED):
            raise SettingsError(f"feedback is {folder}, whose files everybody can load. Name another folder.")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / f".{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(
                f"feedback is {folder}, where no file can be written ({error.strerror}). Name another folder."
            ) from error
        self._places = [folder / name for name in classes]
        self._seconds = days * DAY
        self._lock = threading.Lock()

    async def give(self, label: str, photo: bytes) -> str:
        """Write the photo; see Feedback. `label` must be one of the classes. Raises FeedbackFull."""
        return await asyncio.to_thread(self._add, label, photo)

    async def withdraw(self, key: str) -> bool:
        """Delete the photo of a key; see Feedback."""
        return KEY.fullmatch(key) is not None and await asyncio.to_thread(self._remove, key)

    async def sweep(self) -> None:
        """Delete the photos that are older than the days for which they are kept."""
        await asyncio.to_thread(self._sizes)

    def _add(self, label: str, photo: bytes) -> str:
        place = next(place for place in self._places if place.name == label)
        key = secrets.token_hex(16)
        part = place / f".{key}"
        with self._lock:
            sizes = self._sizes()
            if len(sizes) >= MAX_FEEDBACK or sum(sizes) + len(photo) > MAX_BYTES:
                raise FeedbackFull
            try:
                place.mkdir(mode=0o700, exist_ok=True)
                part.write_bytes(photo)
                os.replace(part, place / f"{key}.jpg")
            except OSError as error:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise FeedbackFull from error
        return key

    def _remove(self, key: str) -> bool:
        found = [path for path in self._photos() if path.stem == key]
        for path in found:
            path.unlink(missing_ok=True)
        return bool(found)

    def _sizes(self) -> list[int]:
        """Delete the photos that are too old; return the bytes of each that stays."""
        oldest, sizes = time.time() - self._seconds, []
        for path in self._photos():
            try:
                about = path.stat()
                if about.st_mtime < oldest:
                    path.unlink()
                else:
                    sizes.append(about.st_size)
            except FileNotFoundError:  # the owner, or another process, has deleted it
                continue
        return sizes

    def _photos(self) -> Iterator[Path]:
        """Yield the photos that visitors gave; the owner's own files in the folders are left alone."""
        for place in self._places:
            if place.is_dir():
                yield from (path for path in list(place.iterdir()) if KEY.fullmatch(path.stem.lstrip(".")))

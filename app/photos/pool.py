"""Photos decoded off the event loop: one thread for each core, and a bound on the pixels in memory.

Knows nothing of networks or requests.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from PIL import Image, _imaging

from app.cpus import usable_cores
from app.errors import QueueTimeout
from app.memory import return_free_pages, return_large_blocks
from app.photos.decode import Exif, read_header, read_pixels, shrink
from app.types import Size

Result = TypeVar("Result")

# One photo of a phone at a time, or several smaller ones. Pillow has 4 bytes a pixel, and the crop, a second
# picture, as many: two of 12 megapixels at once would be 200 MB, of one core's gain.
MAX_PIXELS_HELD: Final = 16_000_000
# Blocks of 16 MB that Pillow keeps for the next large photo: one of 12 megapixels and its crop. Without
# them the kernel makes each page again.
BLOCKS: Final = 6
KEPT_SECONDS: Final = 5.0  # then the memory is returned


class Decoder:
    """Threads that decode photos and prepare them for the networks of a process."""

    def __init__(self) -> None:
        self._room = Room(MAX_PIXELS_HELD)
        self._giving_back: asyncio.TimerHandle | None = None
        _imaging.set_blocks_max(BLOCKS)
        return_large_blocks()
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")

    async def apply(
        self,
        work: Callable[[Image.Image], Result],
        data: bytes,
        deadline: float,
        exif: Exif = "turn",
        least: Size | None = None,
    ) -> Result:
        """Decode the photo in `data` on a thread, and return `work` of its upright RGB image.

        Large JPEGs are decoded no finer than `least`, a (height, width); None decodes exactly.
        Raises the errors of `decode.decode`, and QueueTimeout if its turn comes after `deadline` (by
        time.monotonic). A photo that is cancelled before its turn is not decoded.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._apply, work, data, deadline, exif, least)
        finally:
            if self._giving_back is None:
                self._giving_back = loop.call_later(KEPT_SECONDS, self._give_back)

    def _apply(
        self,
        work: Callable[[Image.Image], Result],
        data: bytes,
        deadline: float,
        exif: Exif,
        least: Size | None,
    ) -> Result:
        if time.monotonic() > deadline:
            raise QueueTimeout
        image = read_header(data)
        if least:
            shrink(image, least)
        with self._room.take(image.width * image.height):
            return work(read_pixels(image, exif))

    def _give_back(self) -> None:
        self._giving_back = None
        self._threads.submit(_return_memory)  # not on the event loop: it takes some milliseconds

    def close(self) -> None:
        """Finish the photos in the queue, end the threads and return the memory."""
        self._threads.shutdown()
        if self._giving_back is not None:
            self._giving_back.cancel()
        _return_memory()


def _return_memory() -> None:
    """Return the memory that Pillow and glibc keep for the next photo."""
    _imaging.clear_cache()
    return_free_pages()


class Room:
    """Room for a number of pixels, first come, first served; a photo that is larger gets all of it."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # a large photo that waits keeps smaller ones behind it

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room, and keep it while the block runs."""
        pixels = min(pixels, self._all)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()

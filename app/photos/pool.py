"""Photos decoded off the event loop: on as many threads as there are cores, bounded in the pixels that are
held at the same time.

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
from app.memory import return_free_pages
from app.photos.decode import Exif, read_header, read_pixels, shrink
from app.types import Size

Result = TypeVar("Result")

# One photo of a phone at a time, or several smaller ones. Pillow has 4 bytes a pixel, and the crop, a second
# picture, as many: two of 12 megapixels at once would be 200 MB, of one core's gain.
MAX_PIXELS_HELD: Final = 16_000_000
# What Pillow keeps of its memory, in blocks of 16 MB, so that the next large photo need not have each page of
# it made anew by the kernel: a photo of 12 megapixels and its crop.
BLOCKS: Final = 6
KEPT_SECONDS: Final = 5.0  # then it is given back: it is made anew once in so long


class Decoder:
    """Threads that decode photos and do what comes next with them."""

    def __init__(self, exif: Exif, least: Size | None = None) -> None:
        """`least` is the height and width that a large JPEG need not be decoded beyond; None is exact."""
        self._exif = exif
        self._least = least
        self._room = Room(MAX_PIXELS_HELD)
        self._giving_back: asyncio.TimerHandle | None = None
        _imaging.set_blocks_max(BLOCKS)
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")

    async def apply(self, work: Callable[[Image.Image], Result], data: bytes, deadline: float) -> Result:
        """`work` done with the photo in `data`, on a thread: an upright RGB image.

        Raises what `preprocess.decode` raises, and Unavailable where its turn comes after `deadline` (in the
        time of time.monotonic). Cancelled before its turn, it is not decoded.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._apply, work, data, deadline)
        finally:
            if self._giving_back is None:
                self._giving_back = loop.call_later(KEPT_SECONDS, self._give_back)

    def _apply(self, work: Callable[[Image.Image], Result], data: bytes, deadline: float) -> Result:
        if time.monotonic() > deadline:
            raise QueueTimeout
        image = read_header(data)
        if self._least:
            shrink(image, self._least)
        with self._room.take(image.width * image.height):
            return work(read_pixels(image, self._exif))

    def _give_back(self) -> None:
        self._giving_back = None
        self._threads.submit(_return_memory)  # not on the event loop: it takes some milliseconds

    def close(self) -> None:
        """Finish what is under way, end the threads and give the memory back."""
        self._threads.shutdown()
        if self._giving_back is not None:
            self._giving_back.cancel()
        _return_memory()


def _return_memory() -> None:
    """Return the memory that Pillow and glibc keep for the next photo."""
    _imaging.clear_cache()
    return_free_pages()


class Room:
    """Room for so many pixels, in the order of asking; what is larger than all of it has it alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # who waits for room keeps those behind it: a large one comes through

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

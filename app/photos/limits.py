"""Limits on the cost of one picture beyond its pixels: CPU time and passes; and libtiff, made silent.

Files of 10 kB take 11 s to decode without these (run-length BMP), of 10 MB an hour (progressive JPEG).
"""

import ctypes
import io
import re
import time
from typing import Final

from PIL import Image, _imaging

from app.errors import BadImage

CPU_SECONDS: Final = 5.0  # three times the cost of 50 megapixels in the slowest format, on one slow core
MAX_WORK: Final = 2_000_000_000  # pixels times passes: 50 megapixels in 40 passes; photos have about ten
MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # ITU T.81, table B.1; within a pass others occur
ALONE: Final = (b"\x01", b"\xd8")  # markers without a length
SCAN: Final = b"\xda"
END: Final = b"\xd9"
READS: Final = 64  # between two looks at the clock, which takes longer than most reads


class TimedBytes(io.BytesIO):
    """The bytes of a file for its decoder; reading fails after too much CPU time.

    It is the CPU time of this thread, so that a busy machine refuses no good picture.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._end = time.thread_time() + CPU_SECONDS
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like any file. Raises BadImage when the time is over."""
        self._reads += 1
        if self._reads % READS == 0 and time.thread_time() > self._end:
            raise _too_much("takes too long to read")
        return super().read(size)


def check_work(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG, or JPEGs within a TIFF, whose many passes over its pixels would take minutes.

    Raises BadImage.
    """
    pixels, passes = image.width * image.height, 0
    if image.format in ("JPEG", "MPO"):
        passes = _passes(data)
    elif image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        passes = data.count(b"\xff" + SCAN)  # all of it is JPEG, of one tile or strip after another
    if passes * pixels > MAX_WORK:
        raise _too_much(f"goes over its pixels {passes} times")


def _passes(data: bytes) -> int:
    """Count the passes of a JPEG over its pixels, from its first marker to its end marker."""
    passes, position = 0, 2
    while marker := MARKER.search(data, position):
        kind, position = marker[1], marker.end()
        if kind == END:
            break
        passes += kind == SCAN
        if kind not in ALONE:
            position += int.from_bytes(data[position : position + 2])
    return passes


def _too_much(found: str) -> BadImage:
    return BadImage(
        f"The picture {found}, which no ordinary one does. Open it in a viewer and save it again.",
        "image-too-large",
    )


def silence_libtiff() -> None:
    """Have libtiff print nothing on standard error, where it writes a line for each bad row of a picture.

    It is found through Pillow's own module; where it is linked into that, there is nothing to be found.
    """
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if handler := getattr(library, name, None):
            handler(None)

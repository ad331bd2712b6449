"""A decoded photo as a file again: what the network is shown, without anything else of the upload."""

import io
from typing import Final

from PIL import Image

SHORT_SIDE: Final = 1024  # px: more than any network takes
QUALITY: Final = 92


def as_jpeg(image: Image.Image, short_side: int = SHORT_SIDE) -> bytes:
    """Return an RGB image as a JPEG of at most `short_side` px on its short side, without metadata."""
    factor = min(1.0, short_side / min(image.size))
    if factor < 1:
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    buffer = io.BytesIO()
    image.info = {}  # Pillow would write the color profile and the comment back
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

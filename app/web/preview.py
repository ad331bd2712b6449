"""The preview that other sites show of a link to the page: its tags and its picture."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from app.settings import Settings
from app.web.colors import ground, readable
from app.web.hosts import public_address

SIZE: Final = (1200, 630)  # Open Graph: the shape that most sites show whole
EDGE, CORNER, LINE = 60, 120, 18  # px
GAP: Final = 24  # px between photos
MAX_PHOTOS: Final = 3
SMOOTH: Final = 2  # drawn so many times as large, then scaled down: Pillow's lines have no soft edges


def preview_tags(settings: Settings, environment: Mapping[str, str], path: str = "") -> str:
    """Return the tags of the page's preview. It has a picture where the server's address is known.

    `path` is that of the page below the address, such as "/garments".
    """
    address = html.escape(public_address(settings, environment))
    if not address:
        return '<meta name="twitter:card" content="summary">\n'
    address += path
    width, height = SIZE
    return (
        f'<meta property="og:url" content="{address}/">\n<link rel="canonical" href="{address}/">\n'
        f'<meta property="og:image" content="{address}/preview.jpg">\n'
        f'<meta property="og:image:width" content="{width}">\n'
        f'<meta property="og:image:height" content="{height}">\n'
        '<meta name="twitter:card" content="summary_large_image">\n'
    )


def draw_preview(color: str, samples: Sequence[Path]) -> bytes:
    """A JPEG with up to three sample photos, or the page's sign, in four corners of the accent `color`."""
    width, height = (side * SMOOTH for side in SIZE)
    picture = Image.new("RGB", (width, height), ground(color, "light"))
    accent = readable(color, "light")
    photos = samples[:MAX_PHOTOS]
    if photos:
        _paste_photos(picture, photos)
    else:
        _draw_sign(picture, accent)
    _draw_corners(picture, accent)
    buffer = io.BytesIO()
    picture.resize(SIZE, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def _paste_photos(picture: Image.Image, photos: Sequence[Path]) -> None:
    """Photos side by side within the corners, each filling its share."""
    inset, gap = (EDGE + LINE + GAP) * SMOOTH, GAP * SMOOTH
    height = picture.height - 2 * inset
    width = (picture.width - 2 * inset - gap * (len(photos) - 1)) // len(photos)
    mask = Image.new("L", (width, height), 0)
    _drawing_on(mask).rounded_rectangle((0, 0, width - 1, height - 1), 24 * SMOOTH, 255)
    for number, file in enumerate(photos):
        with Image.open(file) as photo:
            fitted = ImageOps.fit(ImageOps.exif_transpose(photo).convert("RGB"), (width, height))
        picture.paste(fitted, (inset + number * (width + gap), inset), mask)


def _draw_sign(picture: Image.Image, accent: str) -> None:
    """The picture of the page's empty place for a photo: a frame, hills and a sun."""
    draw, line = _drawing_on(picture), 14 * SMOOTH
    left, top = picture.width // 2 - 150 * SMOOTH, picture.height // 2 - 125 * SMOOTH
    scale = 300 / 48 * SMOOTH  # the drawing in index.html is 48 x 40
    corners = [(left + x * scale, top + y * scale) for x, y in ((2, 2), (46, 38))]
    draw.rounded_rectangle([*corners[0], *corners[1]], 6 * scale, outline=accent, width=line)
    hills = ((3, 33), (16, 22), (24, 29), (33, 20), (45, 32))
    draw.line([(left + x * scale, top + y * scale) for x, y in hills], accent, line, joint="curve")
    draw.ellipse(
        [left + 11 * scale, top + 10 * scale, left + 19 * scale, top + 18 * scale], outline=accent, width=line
    )


def _draw_corners(picture: Image.Image, accent: str) -> None:
    """The four corners that frame things on the page."""
    edge, corner, line = EDGE * SMOOTH, CORNER * SMOOTH, LINE * SMOOTH
    frame = Image.new("L", picture.size, 0)
    draw = _drawing_on(frame)
    right, bottom = picture.width - edge, picture.height - edge
    draw.rounded_rectangle((edge, edge, right, bottom), 48 * SMOOTH, outline=255, width=line)
    draw.rectangle((edge + corner, 0, right - corner, picture.height), fill=0)
    draw.rectangle((0, edge + corner, picture.width, bottom - corner), fill=0)
    picture.paste(accent, (0, 0), frame)


def _drawing_on(picture: Image.Image) -> Any:
    """Return Pillow's pen for a picture."""
    from PIL import ImageDraw  # 4 ms of a start, needed only by link previews

    return ImageDraw.Draw(picture)

"""From the bytes of a picture to an RGB image, or to the reason why not.

The checks: the format, the size, whether it is complete, and its orientation.
"""

import re
from typing import Final, Literal

from PIL import (
    AvifImagePlugin,  # noqa: F401  registers its format, as those below do; Image.init() would load forty
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from app.errors import BadImage, BadRequest, RequestError, UnsupportedMedia
from app.photos.limits import TimedBytes, check_work
from app.types import Size

Exif = Literal["turn", "ignore"]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS: Final = (
    50_000_000  # 200 MB as Pillow keeps RGB; imgproxy's default, above any phone's usual photo
)
MAX_SIDE: Final = 20_000

# EXIF 2.32, table 7: orientation -> the operation that turns the stored pixels upright
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION: Final = 0x0112
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF 6.0, section 15

# First bytes -> formats that people have and that are refused
BEGINNING: Final = 4096  # bytes in which a file shows what it is
REFUSED: Final = {
    rb".{4}ftyp(hei|hev|mif1|msf1)": "a HEIC photo",
    rb"\xff\x0a|.{4}JXL ": "a JPEG XL picture",
    rb".{4}jP  |\xff\x4f\xff\x51": "a JPEG 2000 picture",
    rb"qoif": "a QOI picture",
    rb"(\xef\xbb\xbf)?\s*((<\?xml|<!--|<!DOCTYPE svg)[^\0]{,2000}?)?<svg": "an SVG drawing",
    rb"\x1f\x8b": "a compressed file",
    rb"8BPS": "a Photoshop file",
    rb"%PDF": "a PDF document",
    rb"%!PS|\xc5\xd0\xd3\xc6": "a PostScript file",
    rb"\xd7\xcd\xc6\x9a": "a Windows metafile",
    rb"DDS |BLP[12]": "a texture",
    rb".{4}[\x11\x12]\xaf": "an FLI animation",
}


def decode(data: bytes, exif: Exif = "turn") -> Image.Image:
    """Return the first frame of a picture in one of FORMATS as an RGB image, alpha dropped as fastai does.

    With `exif` "turn" it is turned upright by its EXIF orientation, which fastai ignores. Raises BadRequest,
    UnsupportedMedia or BadImage, and nothing else for any bytes.
    """
    return read_pixels(read_header(data), exif)


def read_header(data: bytes) -> ImageFile.ImageFile:
    """Return the picture with its format and size, not decoded yet. Raises the errors of `decode`."""
    if not data:
        raise BadRequest("The file is empty (0 bytes); send a picture.", "empty-file")
    image = _open(data)
    _check_size(*image.size)
    check_work(image, data)
    return image


def shrink(image: Image.Image, least: Size) -> None:
    """Have a large JPEG decoded at 1/2, 1/4 or 1/8 of its size, but at least at `least` (height, width).

    libjpeg then skips the finer frequencies. Other formats stay unchanged.
    """
    image.draft(None, least[::-1])


def read_pixels(image: ImageFile.ImageFile, exif: Exif) -> Image.Image:
    """Decode the picture of `read_header`; see `decode`. Raises BadImage."""
    data = image.fp.getvalue() if isinstance(image.fp, TimedBytes) else b""  # no copy
    try:
        _check_size(*_tile_size(image))
        image.load()  # before `getexif`, which would load too, and hide an error
        orientation = _orientation(image) if exif == "turn" else 1
        picture = image if image.mode == "RGB" else image.convert("RGB")
    except RequestError:
        raise
    except Exception as error:  # Pillow's plugins raise any error on damaged bytes
        raise _undecodable(error, data) from error
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header only. Raises UnsupportedMedia if the format is unknown."""
    try:
        return Image.open(TimedBytes(data), formats=FORMATS)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        for signature, found in REFUSED.items():
            if re.match(signature, data[:BEGINNING], re.DOTALL):
                raise UnsupportedMedia(
                    f"This is {found}; JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read. "
                    "Export it as JPEG, or take a screenshot of it.",
                    "format-not-allowed",
                ) from error
        raise UnsupportedMedia(
            f"No picture was recognized in these {len(data):,} bytes; JPEG, PNG, WebP, GIF, BMP, TIFF and "
            "AVIF are read."
        ) from error
    except Image.DecompressionBombError as error:
        raise too_large("over 178 million pixels") from error
    except Exception as error:  # recognized, but its header is damaged: any plugin, any exception
        raise _undecodable(error, data) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise too_large(f"{width} x {height} pixels")
    if min(width, height) < 1:
        raise BadImage(f"The picture has {width} x {height} pixels: there is nothing in it.")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """The size of a TIFF's tiles, each of which is decoded whole, however small the picture; else of one
    pixel.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)


def too_large(found: str) -> BadImage:
    """The refusal of a picture of which `found` is too much."""
    return BadImage(
        f"The picture has {found}; up to {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE:,} on a side are "
        "read. Scale it down and try again.",
        "image-too-large",
    )


def _undecodable(error: Exception, data: bytes) -> BadImage:
    if "truncated" in str(error).lower() or _is_cut_off(data):
        return BadImage(
            "The picture is cut off: its end is missing. Copy or download it again.", "truncated-image"
        )
    return BadImage("The picture is damaged and cannot be read whole. Open it in a viewer and save it again.")


def _is_cut_off(data: bytes) -> bool:
    """Tell whether a WebP has fewer bytes than its RIFF header says, or a PNG no end (PNG 3, 11.2.5)."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return data[:4] == b"\x89PNG" and b"IEND" not in data[-16:]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if it is missing or unreadable, which spoils no picture."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF, XMP and TIFF parsers raise any error on damaged bytes
        return 1

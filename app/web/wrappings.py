"""Photos as clients wrap them: the first bytes of pictures, base64, data URLs, and texts sent by mistake."""

import asyncio
import base64
import binascii
import re
from typing import Final

# the first bytes of the accepted formats: JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF
MAGIC: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftyp(avif|avis|mif1)",
    re.DOTALL,
)
BASE64: Final = re.compile(
    rb"\s*(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK|AAAA[A-Za-z0-9+/]{2}Z0eX)"
)
DATA_URL: Final = re.compile(rb"\s*data:[\w/.+-]*(;[\w=-]+)*;base64,", re.ASCII)
LOCAL: Final = re.compile(rb"(file|content|blob|ph|assets-library)://?", re.IGNORECASE)
URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
WHITESPACE: Final = b" \t\r\n"
SLICE: Final = 256 * 1024  # characters that are decoded at once, in a millisecond


def looks_like_image(data: bytes | bytearray) -> bool:
    """Return whether bytes begin as a picture in an accepted format does."""
    return MAGIC.match(data) is not None


def wrong_wrapping(text: bytes | bytearray) -> str:
    """Return a sentence on a text field that holds something in place of a photo; "" if it is plain text."""
    if text.startswith(b"[object "):
        return (
            "A field holds the text '[object Object]': JavaScript sent an object that is not a File or a "
            "Blob; append the File itself."
        )
    if DATA_URL.match(text):
        return "A field holds a data URL; send the file itself, or JSON with the data URL as `image`."
    if BASE64.match(text):
        return "A field holds base64; send the file itself, or JSON with the base64 as `image`."
    if LOCAL.match(text):
        return "A field holds the address of a file on your device; send the file itself."
    return ""


async def decode_base64(text: bytes) -> bytes | None:
    """Return the bytes of base64 or of a data URL, in slices between other requests; None if it is neither.

    Both alphabets of RFC 4648 are accepted, line ends too, and missing padding.
    """
    if prefix := DATA_URL.match(text):
        text = text[prefix.end() :]
    data, rest = bytearray(), b""
    try:
        for start in range(0, len(text), SLICE):
            part = rest + text[start : start + SLICE].translate(URL_SAFE, WHITESPACE)
            whole = len(part) // 4 * 4
            data += base64.b64decode(part[:whole], validate=True)
            rest = part[whole:]
            await asyncio.sleep(0)
        data += base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    except binascii.Error:
        return None
    return bytes(data)

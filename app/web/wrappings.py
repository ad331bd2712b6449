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
# JSON's escapes of base64's own characters: PHP writes the first, .NET the second
ESCAPES: Final = {
    b"\\/": b"/",
    b"\\u002B": b"+",
    b"\\u002b": b"+",
    b"\\u002F": b"/",
    b"\\u002f": b"/",
    b"\\u003D": b"=",
    b"\\u003d": b"=",
    b"\\n": b"",
    b"\\r": b"",
}
ESCAPE: Final = 6  # bytes of the longest
HEAD: Final = 1000  # bytes in which a text shows what it is: patterns look no further
SLICE: Final = 256 * 1024  # characters that are decoded at once, in a millisecond


def looks_like_image(data: bytes | bytearray) -> bool:
    """Return whether bytes begin as a picture in an accepted format does."""
    return MAGIC.match(data) is not None


def wrong_wrapping(text: bytes | bytearray) -> str:
    """Return a sentence on a text field that holds something in place of a photo; "" if it is plain text."""
    start = text[:HEAD]
    if start.startswith(b"[object "):
        return (
            "A field holds the text '[object Object]': JavaScript sent an object that is not a File or a "
            "Blob; append the File itself."
        )
    if DATA_URL.match(start):
        return "A field holds a data URL; send the file itself, or JSON with the data URL as `image`."
    if BASE64.match(start):
        return "A field holds base64; send the file itself, or JSON with the base64 as `image`."
    if LOCAL.match(start):
        return "A field holds the address of a file on your device; send the file itself."
    return ""


async def decode_base64(text: bytes | memoryview) -> bytes | None:
    """Return the bytes of base64 or of a data URL, in slices between other requests; None if it is neither.

    Both alphabets of RFC 4648 are accepted, line ends too, missing padding, and the escapes of JSON.
    """
    if DATA_URL.match(_without_escapes(bytes(text[:HEAD]))):
        text = text[bytes(text[:HEAD]).index(b",") + 1 :]
    data, rest, escape = bytearray(), b"", b""
    try:
        for start in range(0, len(text), SLICE):
            part = escape + bytes(text[start : start + SLICE])
            cut = part.find(b"\\", -ESCAPE) if start + SLICE < len(text) else -1  # an escape may be cut
            part, escape = (part[:cut], part[cut:]) if cut >= 0 else (part, b"")
            part = rest + _without_escapes(part).translate(URL_SAFE, WHITESPACE)
            whole = len(part) // 4 * 4
            data += base64.b64decode(part[:whole], validate=True)
            rest = part[whole:]
            await asyncio.sleep(0)
        data += base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    except binascii.Error:
        return None
    return bytes(data)


def _without_escapes(text: bytes) -> bytes:
    """Return base64 without JSON's escapes; a letter that is not of base64 stays escaped, and is refused."""
    if b"\\" not in text:
        return text
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    return text

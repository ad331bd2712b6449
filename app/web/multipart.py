"""The files of a multipart form, read as they stream in, in memory: an upload never touches the disk.

Knows nothing of Starlette or of pictures. The caller limits the size of the stream.
"""

import asyncio
import time
from collections.abc import AsyncIterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import BadRequest
from app.web.wrappings import looks_like_image, wrong_wrapping

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS: Final = 20  # browsers and curl send one
MAX_FIELD: Final = 64 * 1024  # bytes of a text field; all but `url` are ignored
MAX_HEADER: Final = 16 * 1024  # bytes of a line before a part: file names of 10 kB happen
MAX_OPTIONS: Final = 100  # semicolons in it, each of which takes microseconds
SLICE: Final = 16 * 1024  # bytes for the parser at once: it needs 3 ms for as many carriage returns
TURN_SECONDS: Final = 0.002  # of parsing, after which other requests have as many


class Form(NamedTuple):
    """The files of a form, under any field names, and the text of a field `url`.

    `cause` is the reason why there is no file, if the texts show it.
    """

    files: list[bytes]
    url: str
    cause: str = ""


async def read_form(content_type: str, stream: AsyncIterable[bytes], max_files: int = 1) -> Form:
    """Read a form to its end; other text fields are ignored.

    Raises BadRequest: too-many-files, too-many-parts, field-too-large or malformed-multipart.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _malformed("its Content-Type has no boundary; do not set that header yourself")
    form = _Form(max_files)
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_size=MAX_HEADER)
        start = time.perf_counter()
        async for chunk in stream:
            for part in _slices(chunk):
                parser.write(part)
                if (spent := time.perf_counter() - start) > TURN_SECONDS:
                    await asyncio.sleep(spent)
                    start = time.perf_counter()
        parser.finalize()
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.ended:
        raise _malformed("its closing boundary is missing")
    return Form([bytes(file) for file in form.files], form.url, form.cause)


def _slices(chunk: bytes) -> Iterator[bytes]:
    return (chunk[start : start + SLICE] for start in range(0, len(chunk), SLICE))


def _malformed(found: str) -> BadRequest:
    return BadRequest(
        f"The body is not a multipart form ({found}); let your HTTP client build it: curl -F file=@photo.jpg",
        "malformed-multipart",
    )


class _Form:
    """The state of a form that is being read: the parser's callbacks, in the order of their calls."""

    def __init__(self, max_files: int) -> None:
        self.files: list[bytearray] = []
        self.url = self.cause = ""
        self.ended = False
        self._max_files = max_files
        self._parts = 0
        self._name = self._value = self._disposition = self._kind = b""
        self._data = bytearray()  # of the current part
        self._is_file = self._is_url = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_begin": self.on_header_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_part_end": self.on_part_end,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"The form has over {MAX_PARTS} parts; one file is enough.", "too-many-parts")
        self._disposition = self._kind = b""

    def on_header_begin(self) -> None:
        self._name = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        name = self._name.lower()
        if name == b"content-disposition":
            self._disposition = self._value
        elif name == b"content-type":
            self._kind = self._value.strip().lower()

    def on_headers_finished(self) -> None:
        if self._disposition.count(b";") > MAX_OPTIONS:
            raise _malformed("the content-disposition of a part is too long")
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data":
            raise _malformed("a part has no content-disposition")
        self._is_file = bool(options.get(b"filename"))  # browsers send an empty name if no file was chosen
        if b"filename" not in options:  # some clients leave it out, and name the kind alone
            self._is_file = self._kind.startswith((b"image/", b"application/octet-stream"))
        if self._is_file:
            self._check_count()
        self._is_url = options.get(b"name") == b"url"
        self._data = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > MAX_FIELD:
            self._sniff()
            if not self._is_file:
                found = wrong_wrapping(self._data) or "Send the photo as a file."
                limit = f"A text field of the form has over {MAX_FIELD // 1024} kB."
                raise BadRequest(f"{limit} {found}", "field-too-large")

    def on_part_end(self) -> None:
        self._sniff()
        if self._is_file:
            self.files.append(self._data)
        elif self._is_url:
            self.url = self._data.decode("utf-8", "replace")
        else:
            self.cause = self.cause or wrong_wrapping(self._data)

    def on_end(self) -> None:
        self.ended = True

    def _sniff(self) -> None:
        """Take a text for a file if it begins as a picture does: some clients do not say that it is one."""
        if not self._is_file and looks_like_image(self._data):
            self._is_file = True
            self._check_count()

    def _check_count(self) -> None:
        if len(self.files) >= self._max_files:
            several = f"The form has over {self._max_files} files; send fewer."
            one = "The form has several files; send one photo, or ask POST /analyze?many=1."
            raise BadRequest(one if self._max_files == 1 else several, "too-many-files")

"""The one file of a multipart form, read as it streams in, in memory: an upload never touches the disk.

Knows nothing of Starlette or of pictures. The caller limits the size of the stream.
"""

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Final, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS: Final = 20  # browsers and curl send one
MAX_FIELD: Final = 64 * 1024  # bytes of a text field; all but `url` are ignored
MAX_HEADER: Final = 16 * 1024  # bytes of a line before a part: file names of 10 kB happen


class Form(NamedTuple):
    """The only file of a form, whatever the name of its field, and the text of a field `url`."""

    file: bytes | None
    url: str


async def read_form(content_type: str, stream: AsyncIterable[bytes]) -> Form:
    """Read a form to its end; other text fields are ignored.

    Raises BadRequest: too-many-files, too-many-parts, field-too-large or malformed-multipart.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_size=MAX_HEADER)
        async for chunk in stream:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.ended:
        raise _malformed("its closing boundary is missing")
    return Form(None if form.file is None else bytes(form.file), form.url)


def _malformed(found: str) -> BadRequest:
    return BadRequest(
        f"The body is not a multipart form ({found}); let your HTTP client build it: curl -F file=@photo.jpg",
        "malformed-multipart",
    )


class _Form:
    """The state of a form that is being read: the parser's callbacks, in the order of their calls."""

    def __init__(self) -> None:
        self.file: bytearray | None = None
        self.url = ""
        self.ended = False
        self._parts = 0
        self._name = self._value = self._disposition = b""
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
        self._disposition = b""

    def on_header_begin(self) -> None:
        self._name = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value

    def on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data":
            raise _malformed("a part has no content-disposition")
        self._is_file = bool(options.get(b"filename"))  # browsers send an empty name if no file was chosen
        if self._is_file and self.file is not None:
            raise BadRequest("The form has several files; send one photo at a time.", "too-many-files")
        self._is_url = options.get(b"name") == b"url"
        self._data = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > MAX_FIELD:
            raise BadRequest(
                f"A text field of the form has over {MAX_FIELD // 1024} kB; send the photo as a file.",
                "field-too-large",
            )

    def on_part_end(self) -> None:
        if self._is_file:
            self.file = self._data
        elif self._is_url:
            self.url = self._data.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True

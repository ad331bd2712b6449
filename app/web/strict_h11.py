"""HTTP/1.1 as it arrives: h11, but strict where two readers could find different requests in the same bytes.

A proxy before this server and the server itself must agree where a request ends. RFC 9112 lets a server
either repair or refuse two lengths (6.3), folded lines (5.2) and a bare LF (2.2); here they are refused, in
trailers and chunk extensions too. An absolute target becomes its path: nothing here depends on the host that
a client names.
"""

import re
from typing import Any, Final, NoReturn

import h11
from h11._readers import ChunkedReader

MAX_HEAD: Final = 16 * 1024  # bytes of a request line and its headers: as h11, twice nginx's
MAX_TARGET: Final = 8_000  # bytes of the address: RFC 9110, 4.1 recommends as many
MAX_FIELDS: Final = 100  # headers, or trailers: as Apache takes
MAX_CHUNK_LINE: Final = 256  # bytes of the line before a chunk: its length, and extensions that nobody sends
CHUNKS: Final = 64  # chunks that are read at once, in a quarter of a millisecond

LONGEST_METHOD: Final = 24
VERSIONS: Final = (b"1.0", b"1.1")
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
FOLDED: Final = re.compile(rb"\r\n[ \t]")
LENGTH: Final = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class StrictConnection(h11.Connection):
    """The server's side of a connection; it refuses with an `h11.RemoteProtocolError` that has a status.

    While `resting` it reads no more; it begins to rest after CHUNKS chunks of a body.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self.resting = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event of h11. Raises RemoteProtocolError where a request is ambiguous."""
        if self.resting:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        self.resting = isinstance(self._reader, _ChunkReader) and self._reader.more
        return _normalize_target(event) if isinstance(event, h11.Request) else event

    def _get_io_object(self, role: Any, event: Any, io_dict: Any) -> Any:
        """Read chunked bodies by our reader (h11 0.16, _connection.py, line 320)."""
        found = super()._get_io_object(role, event, io_dict)
        return _ChunkReader() if isinstance(found, ChunkedReader) else found


class _ChunkReader:
    """A reader of chunked bodies (RFC 9112, 7.1) in place of h11's: strict, and with many chunks in an event.

    `more` once it has read CHUNKS chunks: there may be further ones in the buffer.
    """

    def __init__(self) -> None:
        self.more = False
        self._left = 0  # bytes of the current chunk, with the CR LF after it
        self._trailers = -1  # lines read after the last chunk

    def __call__(self, buffer: Any) -> h11.Data | h11.EndOfMessage | None:
        body = bytearray()
        self.more = False
        for _ in range(CHUNKS):
            if not ((self._left or self._read_length(buffer)) and self._read_chunk(buffer, body)):
                break
        else:
            self.more = True
        if body:
            return h11.Data(data=bytes(body))
        return self._read_trailers(buffer) if self._trailers >= 0 else None

    def _read_length(self, buffer: Any) -> bool:
        """Read the line before a chunk; return whether a chunk follows."""
        if self._trailers >= 0:
            return False
        line = buffer.maybe_extract_next_line()
        if line is None:
            if len(buffer) > MAX_CHUNK_LINE:
                _refuse(f"the line before a chunk is over {MAX_CHUNK_LINE} bytes long")
            return False
        found = CHUNK_LINE.fullmatch(line)
        if not found or len(line) > MAX_CHUNK_LINE:
            _refuse("a chunk does not begin with its length")
        length = int(found[1], 16)
        self._left, self._trailers = (length + 2, -1) if length else (0, 0)
        return bool(length)

    def _read_chunk(self, buffer: Any, body: bytearray) -> bool:
        """Read the received part of a chunk; return whether the chunk is complete."""
        if self._left > 2:
            part = buffer.maybe_extract_at_most(self._left - 2) or b""
            body += part
            self._left -= len(part)
        if self._left > 2 or len(buffer) < 2:
            return False
        if buffer.maybe_extract_at_most(2) != b"\r\n":
            _refuse("a chunk is longer than its length")
        self._left = 0
        return True

    def _read_trailers(self, buffer: Any) -> h11.EndOfMessage | None:
        """Read the lines after the last chunk; nothing here uses them."""
        while (line := buffer.maybe_extract_next_line()) is not None:
            if line == b"\r\n":
                return h11.EndOfMessage()
            self._trailers += 1
            if self._trailers > MAX_FIELDS or not TRAILER.fullmatch(line):
                _refuse("the body ends in lines that are not trailers")
        return None


def _check_head(received: bytes) -> None:
    """Refuse a head that h11 would repair. `received` begins with a request line, and may be incomplete."""
    head = received.partition(b"\r\n\r\n")[0]
    if len(head.partition(b"\r\n")[0]) > MAX_TARGET + LONGEST_METHOD:
        _refuse(f"The address is over {MAX_TARGET:,} bytes long, which is the limit here.", 414)
    if len(head) > MAX_HEAD:
        _refuse(f"The headers are over {MAX_HEAD // 1024} kB, which is the limit here.", 431)
    if head.count(b"\r\n") > MAX_FIELDS:
        _refuse(f"There are over {MAX_FIELDS} headers, which is the limit here.", 431)
    if BARE_LF.search(head) or FOLDED.search(head):
        _refuse("a line ends in LF alone or is folded; CR LF was expected")
    lengths = LENGTH.findall(head)
    if len(lengths) > 1 or b"," in b"".join(lengths):
        _refuse("there are several lengths; one Content-Length was expected")


def _normalize_target(request: h11.Request) -> h11.Request:
    """Return the request with its target as a path. Raises RemoteProtocolError for an ambiguous one."""
    names = [name for name, _ in request.headers]
    if request.http_version not in VERSIONS:
        _refuse("its version is unknown; HTTP/1.1 was expected")
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version == b"1.0"
    ):  # RFC 9112, 6.1: the way requests are smuggled
        _refuse("there is a Transfer-Encoding where there cannot be one; one length was expected")
    target = request.target
    if absolute := ABSOLUTE.match(target):  # RFC 9112, 3.2.2
        target = target[absolute.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    if not (target.startswith(b"/") or (target, request.method) == (b"*", b"OPTIONS")):
        _refuse("its address does not begin with a slash")
    if target is request.target:
        return request
    return h11.Request(
        method=request.method,
        target=target,
        headers=request.headers.raw_items(),
        http_version=request.http_version,
    )


def _refuse(detail: str, status: int = 400) -> NoReturn:
    raise h11.RemoteProtocolError(detail, error_status_hint=status)

"""HTTP/1.1 as it arrives: h11, but strict where two readers could find different requests in the same bytes.

A proxy before this server and the server itself must agree where a request ends. RFC 9112 lets a server
either repair or refuse two lengths (6.3), folded lines (5.2) and a bare LF (2.2); here they are refused.
An absolute target becomes its path: nothing here depends on the host that a client names.
"""

import re
from typing import Final, NoReturn

import h11

MAX_HEAD: Final = 16 * 1024  # bytes of a request line and its headers: h11's own, twice what nginx takes
MAX_TARGET: Final = 8_000  # bytes of the address: RFC 9110, 4.1 recommends as many

LONGEST_METHOD: Final = 24
VERSIONS: Final = (b"1.0", b"1.1")
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
FOLDED: Final = re.compile(rb"\r\n[ \t]")
LENGTH: Final = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class StrictConnection(h11.Connection):
    """The server's side of a connection; it refuses with an `h11.RemoteProtocolError` that has a status."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event of h11. Raises RemoteProtocolError where a request is ambiguous."""
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        return _normalize_target(event) if isinstance(event, h11.Request) else event


def _check_head(received: bytes) -> None:
    """Refuse what h11 would repair. `received` begins with a request line, and may be incomplete."""
    head = received.partition(b"\r\n\r\n")[0]
    if len(head.partition(b"\r\n")[0]) > MAX_TARGET + LONGEST_METHOD:
        _refuse(f"The address is over {MAX_TARGET:,} bytes long, which is the limit here.", 414)
    if len(head) > MAX_HEAD:
        _refuse(f"The headers are over {MAX_HEAD // 1024} kB, which is the limit here.", 431)
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

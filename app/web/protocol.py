"""uvicorn's h11 protocol with the limits that it lacks: deadlines for clients that do not send or do not
read, bounds on connections and on the work of one read, and a close that lets the client read why.

h11 and not httptools: httptools accepts headers of any size. Not uvicorn's `limit_concurrency`: it counts
idle connections, so forty of them would have all other clients refused.
"""

import asyncio
import enum
import logging
import secrets
import socket
import struct
import sys
from collections import deque
from typing import Any, ClassVar, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import Code, Unavailable
from app.logs import log_request
from app.web.connections import Connections, queued
from app.web.problems import TYPE, Problem
from app.web.strict_h11 import StrictConnection

CODES: Final[dict[int, Code]] = {400: "bad-request", 414: "uri-too-long", 431: "header-too-large"}
CLOSE: Final = (b"connection", b"close")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET: Final = struct.pack("ii", 1, 0)  # close with a reset, and drop the bytes that are not sent yet
RETRY: Final = 5  # seconds after which a refused client may try again
READ_BYTES: Final = 64 * 1024  # of one read; asyncio's own are four times as long

logger = logging.getLogger(__name__)


class Wait(enum.Enum):
    """The next thing that a connection expects of its client."""

    REQUEST = enum.auto()  # or that it leaves
    HEAD = enum.auto()  # the rest of a request line and headers
    BODY = enum.auto()  # or its turn, if it has sent more than is read at once
    READING = enum.auto()  # of the answer
    LEAVING = enum.auto()  # after a close


class DeadlineProtocol(H11Protocol, asyncio.BufferedProtocol):
    """An HTTP/1.1 connection with deadlines. A request that is late is answered with 408."""

    conn: StrictConnection

    header_seconds = (
        10.0  # from the connection, or from the first byte of a later request, to its last header
    )
    span_seconds = 10.0  # in each such span at least span_bytes must be sent of a body, or read of an answer
    span_bytes = 10_000  # 1 kB/s: slower than any phone that still works
    body_spans = 40  # spans that a body may take; so a large one must come faster
    linger_seconds = 5.0  # for a client to stop sending after a refusal, and to read why
    probe_seconds = 0.5  # between two looks at whether a client that ended its side is still there
    last_seconds = 1  # while the server shuts down: for an idle client's request that is on its way

    open_connections: ClassVar = Connections()
    _turns: ClassVar[deque["DeadlineProtocol"]] = deque()
    _read_buffer: ClassVar = memoryview(
        bytearray(READ_BYTES)
    )  # of all: a read is consumed before the next one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection()
        self.logger = logger  # uvicorn's lines about bad requests are not wanted: cli raises its level
        self._wait: Wait | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0  # bytes since the wait began
        self._start = 0  # how far the client was when the current span began
        self._spoiled = False  # no further request can be read from this client
        self._half_closed = False  # the client has ended its side
        self._draining = False  # the server shuts down

    # --- called by asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        if self.open_connections.add(self):
            self._expect(Wait.HEAD)
        else:
            self._refuse(503, Unavailable.code, "There are too many connections; try again shortly.")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.transport.is_closing():  # after a refusal, further bytes are dropped
            self._received += nbytes
            self.data_received(bytes(self._read_buffer[:nbytes]))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to answer before closing: some clients end their side when the request is whole."""
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._refuse(400, "bad-request", "The request ended before its body was complete.", left=True)
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing() or not answering or self.conn.their_state is h11.SEND_BODY:
            return False
        self._half_closed = True
        self.loop.call_later(self.probe_seconds, self._probe)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self.open_connections.remove(self)
        super().connection_lost(exc)

    # --- called by uvicorn ----------------------------------------------------------------------------------

    def handle_events(self) -> None:
        """Handle the received bytes, up to a number of chunks; the rest waits for its turn."""
        super().handle_events()
        self._announce_close()
        if self.conn.resting:
            self.transport.pause_reading()
            self._turns.append(self)
            if len(self._turns) == 1:
                self.loop.call_soon(self._take_turn)
        self._update()

    def on_response_complete(self) -> None:
        self.conn.resting = bool(self.conn.trailing_data[0])  # a request sent ahead waits its turn
        super().on_response_complete()
        self._update()

    def shutdown(self) -> None:
        """Close after one more answer, which announces it, or soon if the client is idle.

        uvicorn closes idle connections at once, and the others after an answer that does not announce it: a
        client that uses its connection again loses that request.
        """
        if self.transport.is_closing():
            return
        self._draining, self.timeout_keep_alive = True, self.last_seconds
        self._announce_close()
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.last_seconds, self.timeout_keep_alive_handler
            )

    def _announce_close(self) -> None:
        """Have the answer say `Connection: close`, if the server shuts down and the headers are not sent."""
        if not self._draining or self.cycle is None or self.cycle.response_started:
            return
        asked = self.cycle.scope["headers"]
        if CLOSE not in asked:  # uvicorn answers as if the client had asked for it
            self.cycle.scope["headers"] = [*asked, CLOSE]

    def send_400_response(self, msg: str) -> None:
        """Answer a request that h11 refuses with a problem; h11's exception has the status and the reason."""
        self._spoiled = True
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        # 501 is for transfer codings: this server knows none, so the request must change
        status = status if status in CODES else 400
        detail = str(error).partition(": ")[0]  # without h11's quotation of the request
        if status == 400:
            detail = f"This is not a valid HTTP request: {detail}."
        self._refuse(status, CODES[status], detail)

    # --- turns ----------------------------------------------------------------------------------------------

    @classmethod
    def _take_turn(cls) -> None:
        """Give the next connection its turn, one in each turn of the event loop."""
        connection, more = cls._turns.popleft(), bool(cls._turns)
        connection.conn.resting = False
        if not connection.transport.is_closing():
            connection.handle_events()
            if not connection.flow.read_paused:
                connection.transport.resume_reading()
        if more:
            connection.loop.call_soon(cls._take_turn)

    # --- deadlines ------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Determine the next thing that the client must do."""
        state = self.conn.their_state
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self._expect(Wait.READING)
        elif state is h11.SEND_BODY or self.conn.resting:
            self._expect(Wait.BODY)
        elif state is not h11.IDLE:
            self._expect(None)
        elif self._half_closed:
            self.transport.close()
        else:
            self._expect(Wait.HEAD if self.conn.trailing_data[0] else Wait.REQUEST)

    def _expect(self, wait: Wait | None) -> None:
        """Start the clock for the client's next step, or stop it."""
        if wait is self._wait:
            return
        self._wait, self._received = wait, 0
        if wait is None:
            self.open_connections.set_busy(self)
        elif wait in (Wait.BODY, Wait.READING):
            self.open_connections.set_slow(self)
        else:
            self.open_connections.set_idle(self)
        self._start_clock()

    def _start_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._start = self._done()
        if self._wait not in (None, Wait.REQUEST):  # after an answer uvicorn's keep-alive timer runs
            head, leaving = self._wait is Wait.HEAD, self._wait is Wait.LEAVING
            seconds = self.header_seconds if head else self.linger_seconds if leaving else self.span_seconds
            self._timer = self.loop.call_later(seconds, self._late)

    def _done(self) -> int:
        """Return how far the client is: bytes of the body sent, or minus those of the answer unread."""
        if self._wait is not Wait.READING:
            return self._received
        return -self.transport.get_write_buffer_size() - queued(self.transport.get_extra_info("socket"))

    def _late(self) -> None:
        """End a wait, or let a client go on that was quick enough in this span."""
        done, due = self._done() - self._start, self.span_bytes
        if self._wait is Wait.BODY:
            declared = dict(self.headers).get(b"content-length", b"0")
            due = max(due, int(declared) // self.body_spans, self._received // self.body_spans)
            if self.flow.read_paused or self.conn.resting:
                due = 0  # it is waiting for us
        if self._wait in (Wait.BODY, Wait.READING) and done >= due:
            self._start_clock()
        elif self._wait in (Wait.READING, Wait.LEAVING):
            self.drop()
        else:
            detail = "The request did not arrive in time; send it again over a better connection."
            self._refuse(408, "request-timeout", detail)

    def _probe(self) -> None:
        """Test whether a client that ended its side has left: then it answers a write with a reset."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.drop()
            return
        if not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(CONTINUE)  # which every client of HTTP/1.1 skips: RFC 9110, 15.2
        self.loop.call_later(self.probe_seconds, self._probe)

    # --- ends -----------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Close at once."""
        if (
            self.transport.get_write_buffer_size()
        ):  # or the kernel would hold megabytes for a client that left
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def close_gently(self, transport: asyncio.Transport) -> None:
        """Close `transport`. A client that still sends would get a reset before it has read the answer."""
        sends = self._spoiled or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        if not sends or transport.is_closing():
            self._expect(Wait.READING)  # of the bytes that are not sent yet
            transport.close()
            return
        self._expect(Wait.LEAVING)
        try:
            transport.write_eof()
        except OSError:  # the client has left, and the event loop does not know yet
            transport.abort()
            return
        transport.resume_reading()

    def _refuse(self, status: int, code: Code, detail: str, *, left: bool = False) -> None:
        """Answer with a problem, if nothing was answered yet, and close.

        A client that may have `left` before its request was whole is one in the log.
        """
        cycle = self.cycle if self.cycle and not self.cycle.response_complete else None
        scope: dict[str, Any] = cast("dict[str, Any]", cycle.scope) if cycle else {}
        identity = scope.setdefault("request_id", secrets.token_hex(8))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = Problem(status, code, detail, identity)
            body = problem.as_json()
            headers = {"content-type": TYPE, "content-length": str(len(body)), "x-request-id": identity}
            headers |= {"connection": "close"} | ({"retry-after": str(RETRY)} if status == 503 else {})
            lines = [f"HTTP/1.1 {status} {problem.title}", *(f"{k}: {v}" for k, v in headers.items())]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            if not left:
                scope["refused"] = status, code
        if cycle:  # the application handles the request, and will write the line of the log
            cycle.disconnected = True
            cycle.message_event.set()
        else:
            self._count(status, code, identity)
        self.transport.close()

    def _count(self, status: int, code: Code, identity: str) -> None:
        """Log and count a request that the application never saw."""
        log_request("-", "-", status, code, 0.0, identity)
        if service := self.app_state.get("service"):
            service.metrics.requests.labels(str(status), code).inc()


class _Transport:
    """A transport that closes gently, and does not resume reading while its connection waits for a turn."""

    def __init__(self, transport: asyncio.Transport, protocol: DeadlineProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def resume_reading(self) -> None:
        if not self._protocol.conn.resting:
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._protocol.close_gently(self._transport)

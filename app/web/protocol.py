"""uvicorn's h11 protocol with what it does not have: deadlines for receiving, a bound on connections, a close
that lets the client read why, and a pause for who is refused and asks again at once.

h11 and not httptools: httptools takes headers of any size. Not uvicorn's `limit_concurrency`: it counts idle
connections, so that forty of them have everybody else refused.
"""

import asyncio
import logging
import os
import secrets
import sys
from typing import Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import Code, Unavailable
from app.logs import log_request
from app.web.problems import TYPE, Problem
from app.web.strict_h11 import StrictConnection

CODES: Final[dict[int, Code]] = {400: "bad-request", 414: "uri-too-long", 431: "header-too-large"}
RETRY: Final = 5  # seconds until a refused connection is worth another try

logger = logging.getLogger(__name__)


def descriptors() -> int:
    """How many files and sockets this process may have open."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 512
    return limit if limit > 0 else sys.maxsize


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose headers or body do not arrive in time, with a 408 where nothing was answered
    yet.
    """

    header_seconds = (
        10.0  # from the connection, or the first byte of a later request, to the end of its headers
    )
    body_seconds = 10.0  # in each such span of time at least body_bytes of a body must arrive
    body_bytes = 10_000  # 1 kB/s: slower than any phone that still works
    linger_seconds = 5.0  # for a client to stop sending what was refused, and to read why
    # of the refused, who were told to wait for a second at least, so many a second are read again, as long as
    # each has its turn in time: eleven that ask again and again would take a core from those that were let in
    refused_a_second = 100.0
    longest_pause = 0.25  # the connection may be one of a proxy's, and the next request somebody else's
    read_again = 0.0  # the time of the loop at which the latest of them is
    max_connections = min(1000, descriptors() // 2)  # the other half is for files and for what is accepted

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection()
        self.logger = logger  # uvicorn's lines about strangers' mistakes are not wanted: cli raises its level
        self.heard = 0.0  # when the client last said something
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: type[h11.IDLE | h11.SEND_BODY] | None = None
        self._received = 0
        self._spoilt = False  # nothing more can be read out of what the client sends

    @property
    def waits(self) -> bool:
        """Whether nothing is under way: a request is awaited, or an answered client is let go."""
        return self.conn.their_state is h11.IDLE or self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self)))
        self.heard = self.loop.time()
        self._expect(h11.IDLE)
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # what was refused is read and dropped
        self.heard = self.loop.time()
        self._received += len(data)
        super().data_received(data)
        state = self.conn.their_state
        if self.transport.is_closing():
            return
        if state not in (h11.IDLE, h11.SEND_BODY):
            self._expect(None)
        elif state is not self._awaited:
            self._expect(state)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        scope = cast("dict[str, Any]", self.cycle.scope) if self.cycle else {}
        if scope.get("code") == Unavailable.code and not self.transport.is_closing():
            self.flow.pause_reading()  # by its flag, or what is pipelined would end the pause
            self.loop.call_later(self._pause(), super().on_response_complete)
        else:
            super().on_response_complete()

    def _pause(self) -> float:
        """Seconds until it is the turn of this connection, of all that were refused."""
        shared, now = type(self), self.loop.time()
        turn = max(shared.read_again + 1 / self.refused_a_second, now)
        shared.read_again = min(turn, now + self.longest_pause)
        return shared.read_again - now

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def linger(self, transport: asyncio.Transport) -> None:
        """Close. A client that still sends would get a reset before it has read the answer: it gets time."""
        self._expect(None)
        sends = self._spoilt or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        if not sends or transport.is_closing():
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client has gone, and the loop has not heard of it yet
            transport.abort()
            return
        transport.resume_reading()
        self._timer = self.loop.call_later(self.linger_seconds, transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 refuses, as RFC 9457; its exception, being handled, says the status and why."""
        self._spoilt = True
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        # 501 is for transfer codings: nothing here can do them, so it is the request that must change
        status = status if status in CODES else 400
        detail = str(error).partition(": ")[0]  # what follows is what was sent
        self._refuse(
            status, CODES[status], detail if status != 400 else f"This is no HTTP request: {detail}."
        )

    def _make_room(self) -> None:
        """Let the connection go that has been silent for longest, or else refuse this one."""
        others = [
            c for c in self.connections if isinstance(c, DeadlineProtocol) and c is not self and c.waits
        ]
        if others:
            min(others, key=lambda other: other.heard).transport.abort()
        else:
            self._refuse(503, Unavailable.code, "There are too many connections; try again shortly.")

    def _refuse(self, status: int, code: Code, detail: str) -> None:
        """Answer with a problem, where nothing was answered yet, and close."""
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
            scope["refused"] = status, code
        if cycle:  # the application is in the middle of it, and writes the line
            cycle.disconnected = True
            cycle.message_event.set()
        else:
            self._count(status, code, identity)
        self.transport.close()

    def _count(self, status: int, code: Code, identity: str) -> None:
        log_request("-", "-", status, code, 0.0, identity)
        if service := self.app_state.get("service"):
            service.metrics.requests.labels(str(status), code).inc()

    def _expect(self, state: type[h11.IDLE | h11.SEND_BODY] | None) -> None:
        """Start the clock for headers (IDLE) or a body (SEND_BODY), or stop it."""
        if self._timer is not None:
            self._timer.cancel()
        self._awaited, self._received, self._timer = state, 0, None
        if state is not None:
            seconds = self.header_seconds if state is h11.IDLE else self.body_seconds
            self._timer = self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self._awaited is h11.SEND_BODY and (self._received >= self.body_bytes or self.flow.read_paused):
            self._expect(h11.SEND_BODY)  # on its way, or waiting for us
            return
        self._refuse(
            408,
            "request-timeout",
            "The request did not arrive in time; send it again over a better connection.",
        )


class _Lingering:
    """A connection's transport, whose `close` gives the client time to read."""

    def __init__(self, transport: asyncio.Transport, protocol: DeadlineProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._protocol.linger(self._transport)

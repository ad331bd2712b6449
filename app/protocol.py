"""uvicorn's h11 protocol with deadlines for receiving, which uvicorn does not have: a silent client is let
go.

h11 and not httptools: httptools takes headers of any size.
"""

import asyncio
import json
import sys
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PROBLEM_HEADERS: Final = "content-type: application/problem+json\r\nconnection: close\r\n"


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose headers or body do not arrive in time, with a 408 where nothing was answered
    yet.
    """

    header_seconds = (
        10.0  # from the connection, or the first byte of a later request, to the end of its headers
    )
    body_seconds = 10.0  # in each such span of time at least body_bytes of a body must arrive
    body_bytes = 10_000  # 1 kB/s: slower than any phone that still works

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._awaited: type[h11.IDLE | h11.SEND_BODY] | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(h11.IDLE)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        state = self.conn.their_state
        if state not in (h11.IDLE, h11.SEND_BODY):
            self._expect(None)
        elif state is not self._awaited:
            self._expect(state)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 refuses, as RFC 9457; its exception, being handled, says the status."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(status, "header-too-large" if status == 431 else "bad-request", msg)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer with a problem, where nothing was answered yet, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            title = HTTPStatus(status).phrase
            problem = {
                "type": "about:blank",
                "title": title,
                "status": status,
                "code": code,
                "detail": detail,
            }
            head = f"HTTP/1.1 {status} {title}\r\n{PROBLEM_HEADERS}\r\n"
            self.transport.write(head.encode() + json.dumps(problem).encode())
        self.transport.close()

    def _expect(self, state: type[h11.IDLE | h11.SEND_BODY] | None) -> None:
        """Start the clock for headers (IDLE) or a body (SEND_BODY), or stop it."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaited, self._received, self._deadline = state, 0, None
        if state is not None:
            seconds = self.header_seconds if state is h11.IDLE else self.body_seconds
            self._deadline = self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self._awaited is h11.SEND_BODY and (self._received >= self.body_bytes or self.flow.read_paused):
            self._expect(h11.SEND_BODY)  # on its way, or waiting for us
            return
        self._refuse(
            408,
            "request-timeout",
            "The request did not arrive in time; send it again over a better connection.",
        )

"""Listening: the uvicorn server, its limits, and the reason why an address cannot be bound."""

import asyncio
import errno
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from app.errors import StartupError
from app.web.connections import burst
from app.web.protocol import DeadlineProtocol

GRACE: Final = 30  # seconds to finish requests after SIGTERM: hosts kill after 10 to 30

QUEUE: Final = 1024  # connections that may wait to be accepted
SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # asyncio retries after a second

logger = logging.getLogger(__name__)


def server_config(app: Starlette, host: str, port: int) -> uvicorn.Config:
    """Return uvicorn's configuration, with our protocol, log and limits."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        loop="app.web.connections:new_event_loop",  # also where uvloop is installed
        ws="none",
        log_config=None,
        access_log=False,  # RequestMiddleware writes one line a request
        server_header=False,
        proxy_headers=False,  # TrustedProxies reads them
        backlog=burst(),  # asyncio accepts as many in a turn of the loop, before the protocol can refuse one
        timeout_graceful_shutdown=GRACE,
    )


class Server(uvicorn.Server):
    """A server that drains on the first signal, exits on the second one, and calls `reload` on SIGHUP."""

    def __init__(self, config: uvicorn.Config, reload: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(config)
        self._reload = reload
        self._reloads: set[asyncio.Task[None]] = set()
        self._terminal = has_terminal()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_LoopErrors())
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            await super().startup(sockets)
        except SystemExit as end:  # uvicorn's answer to an address that it cannot bind
            if not isinstance(end.__context__, OSError):
                raise
            raise refusal(end.__context__, self.config.host, self.config.port) from end
        for server in self.servers:
            for each in server.sockets:  # the kernel may queue more: asyncio knows one number for both
                with each.dup() as same:
                    same.listen(QUEUE)

    def _hang_up(self) -> None:
        """Reload, unless the signal means that the terminal was closed."""
        if self._terminal and not has_terminal():
            self.should_exit = True
            return
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def has_terminal() -> bool:
    """Return whether the process has a controlling terminal."""
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False


class _LoopErrors:
    """The exception handler of the event loop: scarce descriptors are one line in a minute."""

    def __init__(self) -> None:
        self._silent_until = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in SCARCE):
            loop.default_exception_handler(context)
        elif (
            loop.time() >= self._silent_until
        ):  # asyncio tries again each second, for each waiting connection
            self._silent_until = loop.time() + 60
            logger.warning("connections have to wait: %s", error.strerror)


def refusal(error: OSError, host: str, port: int) -> StartupError:
    """Return the error for an address that cannot be bound, with its cause and the remedy."""
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 8080
        return StartupError(
            f"Port {port} is in use: another program listens there, perhaps this server in another window. "
            f"Stop that one, or take another port: --port {other} (make PORT={other} serve)."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartupError(
            f"Port {port} is reserved: the system lets only administrators listen there. Take a port from "
            "1024 on, such as --port 8080."
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return StartupError(
            f"--host is {host}, which is not an address of this machine. Use 127.0.0.1 for this machine "
            "alone, or 0.0.0.0 for all of its addresses."
        )
    return StartupError(f"The server cannot listen at {host}, port {port}: {error.strerror or error}.")

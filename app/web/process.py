"""The serving process: log, signals, memory, descriptors, and the uvicorn server."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from app.errors import StartupError
from app.logs import start_logging
from app.memory import return_large_blocks
from app.photos.limits import silence_libtiff
from app.settings import Settings
from app.web.app import create_app
from app.web.connections import burst
from app.web.protocol import DeadlineProtocol

GRACE: Final = 30  # seconds to finish requests after SIGTERM: hosts kill after 10 to 30

QUEUE: Final = 1024  # connections that may wait to be accepted
SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # asyncio retries after a second

logger = logging.getLogger(__name__)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal stops the server. Raises StartupError if the model cannot be opened."""
    silence_libtiff()
    return_large_blocks()
    with contextlib.closing(start_logging(settings.log_format)):
        failures: list[StartupError] = []

        def stop(error: StartupError) -> None:
            failures.append(error)
            server.should_exit = True

        server = _Server(_config(create_app(settings, stop), host, port))
        # uvicorn drains on SIGTERM and then raises the signal again; a drained server exits with 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run()
    if failures:
        raise failures[0]


def _config(app: Starlette, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        loop="asyncio",  # the same everywhere: uvloop is often installed, but not required
        ws="none",
        log_config=None,
        access_log=False,  # RequestMiddleware writes one line a request
        server_header=False,
        proxy_headers=False,  # TrustedProxies reads them
        backlog=burst(),  # asyncio accepts as many in a turn of the loop, before the protocol can refuse one
        timeout_graceful_shutdown=GRACE,
    )


class _Server(uvicorn.Server):
    """A server that drains on the first signal and exits on the second one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_LoopErrors())
        await super().startup(sockets)
        for server in self.servers:
            for each in server.sockets:  # the kernel may queue more: asyncio knows one number for both
                with socket.socket(fileno=os.dup(each.fileno())) as same:
                    same.listen(QUEUE)


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

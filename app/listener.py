"""uvicorn around the application: how it listens, drains and ends."""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from app.errors import StartupError
from app.protocol import DeadlineProtocol, descriptors
from app.server import create_app
from app.service import Service

GRACE: Final = 30  # seconds for what is under way when the end is asked for: hosts kill after 10 to 30
SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # for which asyncio waits a second

logger = logging.getLogger(__name__)


async def listen(
    service: Service, host: str, port: int, listening: asyncio.Event, failed: asyncio.Future[StartupError]
) -> None:
    """Serve until a signal asks for the end, or the service has `failed`; `listening` is set once it does."""
    server = _Server(_config(create_app(service), host, port, service.settings.trusted_proxies), listening)

    def end(_: object) -> None:
        server.should_exit = True

    failed.add_done_callback(end)
    # uvicorn drains on SIGTERM and then raises it once more: what was asked for is done, and that is exit
    # code 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    await server.serve()


def _config(app: Starlette, host: str, port: int, trusted_proxies: Sequence[str]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # the application writes one line a request itself
        server_header=False,
        proxy_headers=bool(trusted_proxies),  # of nobody else: whoever is asked for X-Forwarded-For may lie
        forwarded_allow_ips=list(trusted_proxies),
        backlog=min(
            1024, descriptors() // 4
        ),  # as many may be accepted before the bound on them is looked at
        timeout_graceful_shutdown=GRACE,
    )


class _Server(uvicorn.Server):
    """Drains on the first signal, ends on the second one."""

    def __init__(self, config: uvicorn.Config, listening: asyncio.Event) -> None:
        super().__init__(config)
        self._listening = listening

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_one_line)
        await super().startup(sockets)
        self._listening.set()


def _one_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio says when a connection cannot be accepted, without the traceback: it tries again."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in SCARCE:
        logger.warning("connections have to wait: %s", error.strerror)
    else:
        loop.default_exception_handler(context)

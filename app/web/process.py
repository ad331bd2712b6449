"""The serving process: its log, its signals, its descriptors, and uvicorn in the middle of it."""

import asyncio
import contextlib
import ctypes
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
from app.logs import start_logging
from app.photos.limits import silence_libtiff
from app.settings import Settings
from app.web.app import create_app
from app.web.protocol import DeadlineProtocol, descriptors

M_MMAP_THRESHOLD: Final = -3  # glibc's malloc.h
LARGE_BLOCK: Final = (
    1_000_000  # bytes: pictures and their crops are larger, what is made anew all the time smaller
)
GRACE: Final = 30  # seconds for what is under way when the end is asked for: hosts kill after 10 to 30

SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # for which asyncio waits a second

logger = logging.getLogger(__name__)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal asks for the end. Raises StartupError if the model cannot be opened."""
    silence_libtiff()
    _return_large_blocks()
    with contextlib.closing(start_logging(settings.log_format)):
        failures: list[StartupError] = []

        def stop(error: StartupError) -> None:
            failures.append(error)
            server.should_exit = True

        server = _Server(_config(create_app(settings, stop), host, port, settings.trusted_proxies))
        # uvicorn drains on SIGTERM and then raises it once more: what was asked for is done, and that is
        # exit code 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run()
    if failures:
        raise failures[0]


def _return_large_blocks() -> None:
    """Have glibc give large blocks back to the system as soon as they are freed (`decoder.py` keeps a few).

    By itself it raises this threshold to 32 MB, once such a block was freed, and from then on keeps what one
    thread after the other has used: 140 MB more after 32 photos of 12 megapixels. No other C library has it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _config(app: Starlette, host: str, port: int, trusted_proxies: Sequence[str]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        loop="asyncio",  # the same everywhere: uvloop is not among what serving needs, but often there
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_one_line)
        await super().startup(sockets)


def _one_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio says when a connection cannot be accepted, without the traceback: it tries again."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in SCARCE:
        logger.warning("connections have to wait: %s", error.strerror)
    else:
        loop.default_exception_handler(context)

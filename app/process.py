"""The serving process: its log, its memory, and its start."""

import asyncio
import contextlib
import ctypes
from typing import Final

from app.errors import StartupError
from app.limits import hush
from app.listener import listen
from app.logs import start_logging
from app.service import Service
from app.settings import Settings

M_MMAP_THRESHOLD: Final = -3  # glibc's malloc.h
LARGE_BLOCK: Final = (
    1_000_000  # bytes: pictures and their crops are larger, what is made anew all the time smaller
)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal asks for the end. Raises StartupError if the model cannot be opened."""
    hush()
    _return_large_blocks()
    with contextlib.closing(start_logging(settings.log_format)):
        # asyncio's loop everywhere: uvloop is not among what serving needs, but often there
        asyncio.run(_serve(settings, host, port))


async def _serve(settings: Settings, host: str, port: int) -> None:
    failed: asyncio.Future[StartupError] = asyncio.get_running_loop().create_future()
    service = Service(settings, failed.set_result)
    service.start(listening := asyncio.Event())
    await listen(service, host, port, listening, failed)
    if failed.done():
        raise failed.result()


def _return_large_blocks() -> None:
    """Have glibc give the memory of a picture back to the system as soon as it is freed.

    By itself it raises this threshold to 32 MB, once such a block was freed, and from then on keeps what one
    thread after the other has used: 140 MB more after 32 photos of 12 megapixels. No other C library has it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)

"""glibc's allocator, told to give memory back to the system. Other C libraries have neither function."""

import contextlib
import ctypes
from typing import Final

M_MMAP_THRESHOLD: Final = -3  # of malloc.h
LARGE_BLOCK: Final = 1_000_000  # bytes: pictures and their crops are larger, short-lived objects smaller


def return_large_blocks() -> None:
    """Return large blocks to the system as soon as they are freed (photos/pool keeps a few).

    By default glibc raises this threshold to 32 MB once such a block was freed, and then keeps the memory of
    each thread: 140 MB more after 32 photos of 12 megapixels.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def return_free_pages() -> None:
    """Return the free pages of all threads' heaps to the system; takes some milliseconds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

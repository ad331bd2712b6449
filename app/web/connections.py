"""The open connections of a process: at most so many, and which of them makes room for a newcomer."""

import asyncio
import os
import random
import selectors
import socket
import sys
from collections import OrderedDict
from typing import Final, Protocol

MAX_OPEN: Final = 1000  # connections; each has its buffers, here and in the kernel
BURST: Final = 8  # connections that asyncio accepts in one turn of the event loop, before any can be refused


EVENTS: Final = (
    32  # ready sockets that are handled in one turn: of a thousand that are closed, some at a time
)


Ready = tuple[selectors.SelectorKey, int]


class FairSelector(selectors.DefaultSelector):
    """A selector of at most EVENTS ready sockets, chosen at random; the others are ready again."""

    def select(self, timeout: float | None = None) -> list[Ready]:
        """Return the ready sockets with their events; see selectors."""
        ready = super().select(timeout)
        return ready if len(ready) <= EVENTS else random.sample(ready, EVENTS)  # no secret


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose turns are short however many clients act at once."""
    if sys.platform == "win32":  # its own loop has no selector
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(FairSelector())


def descriptors() -> int:
    """Return how many files and sockets this process may have open."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 512
    return limit if limit > 0 else sys.maxsize


def burst() -> int:
    """Return how many connections may be accepted in one turn of the event loop."""
    return min(BURST, max(1, descriptors() // 8))


def queued(connection: socket.socket) -> int:
    """Return how many bytes the kernel holds that the client has not received (Linux; elsewhere 0)."""
    if sys.platform != "linux" or connection.fileno() < 0:
        return 0
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Closable(Protocol):
    """A connection that can be closed for a newcomer."""

    def drop(self) -> None:
        """Close at once."""


class Connections:
    """The connections of a process, grouped by the expected next step. Every operation takes constant time.

    A newcomer above the limit takes the place of the connection that has been idle for longest, or else of
    the one whose client has been sending or reading for longest. Requests being answered keep theirs.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Keep at most `limit` connections; by default half of the descriptors, but for those of a burst."""
        self._limit = limit or max(1, min(MAX_OPEN, descriptors() // 2) - burst())
        self._busy: set[Closable] = set()
        self._idle: OrderedDict[Closable, None] = OrderedDict()  # the longest idle first
        self._slow: OrderedDict[Closable, None] = OrderedDict()  # the longest at it first

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle) + len(self._slow)

    def add(self, connection: Closable) -> bool:
        """Add a newcomer; return False where there is no room for it."""
        if len(self) >= self._limit:
            waiting = self._idle or self._slow
            if not waiting:
                return False
            victim, _ = waiting.popitem(last=False)
            victim.drop()
        self._idle[connection] = None
        return True

    def remove(self, connection: Closable) -> bool:
        """Forget a connection; return whether it was known."""
        for known in (self._idle, self._slow):
            if connection in known:
                del known[connection]
                return True
        found = connection in self._busy
        self._busy.discard(connection)
        return found

    def set_idle(self, connection: Closable) -> None:
        """Note that a request is awaited, or nothing any more."""
        if self.remove(connection):
            self._idle[connection] = None

    def set_slow(self, connection: Closable) -> None:
        """Note that the client has begun to send a body, or does not read its answer."""
        if self.remove(connection):
            self._slow[connection] = None

    def set_busy(self, connection: Closable) -> None:
        """Note that the connection is waiting for this server."""
        if self.remove(connection):
            self._busy.add(connection)

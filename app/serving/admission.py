"""Who may come in: as many as can be answered while they are still waiting. The others are told at once when
to try again.

Knows how fast answers have lately been leaving, and nothing of photos or requests.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from app.errors import Unavailable

MAX_WAIT: Final = 1.5  # seconds that the last one in may have to wait: with it all are answered within two
DRAINED_WAIT: Final = 0.75  # while more come than can be answered; so all is as usual a second after the rush
MAX_IN_FLIGHT: Final = 64  # the uploads and pixels of so many fit in the memory of a small machine
MIN_ADMITTED: Final = (
    4  # so many come in however slow the network is, or hardly anybody would ever be answered
)
QUEUE_TIMEOUT: Final = (
    5.0  # seconds that who was let in may wait: the estimate was wrong, the answer is worthless
)
EWMA_ALPHA: Final = 0.1  # weight of the latest answer in the moving average


class Admission:
    """Counts those inside, and estimates what one more would wait. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_flight = 0
        self._pace = 0.0  # seconds between two answers while there is work
        self._left = -math.inf  # when the latest answer left
        self._limit = MAX_WAIT

    @property
    def in_flight(self) -> int:
        """How many have come in and not left yet."""
        return self._in_flight

    @property
    def wait(self) -> float:
        """Seconds that one more would wait before it is looked at."""
        return self._in_flight * self._pace

    def check(self) -> None:
        """Raise Unavailable, with the seconds after which to try again, where there is no room.

        Once one had to be refused the queue is kept short, until it has become so by itself: a queue that
        stays long helps nobody, and all who come after the rush would wait for it.
        """
        if self.wait <= DRAINED_WAIT / 2:
            self._limit = MAX_WAIT
        if self._in_flight < MIN_ADMITTED or (self.wait <= self._limit and self._in_flight < MAX_IN_FLIGHT):
            return
        self._limit = DRAINED_WAIT
        raise Unavailable(
            f"{self._in_flight} photos are already waiting, about {self.wait:.1f} seconds; try again "
            "shortly.",
            retry_after=max(1, math.ceil(self.wait)),
        )

    @contextmanager
    def slot(self) -> Iterator[float]:
        """A place inside, and the time of the clock after which its answer is of no use any more.

        Raises Unavailable. What fails or is cancelled says nothing of the pace.
        """
        self.check()
        came = self._clock()
        self._in_flight += 1
        try:
            yield came + QUEUE_TIMEOUT
            now = self._clock()
            # what came to an empty house took all its time for itself, the others since the one before left
            taken = now - max(came, self._left)
            self._pace = self._pace + EWMA_ALPHA * (taken - self._pace) if self._pace else taken
            self._left = now
        finally:
            self._in_flight -= 1

"""Admission: photos enter the queue only if they can be answered in time; the others are refused at once.

Knows the recent rate of answers, and nothing of photos or requests.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from app.errors import Unavailable

# seconds of estimated wait up to which photos are admitted; after a refusal half of it, so that the queue is
# short again a second after a rush
MAX_WAIT: Final = 1.5
MAX_IN_FLIGHT: Final = 64  # photos whose uploads and pixels fit in the memory of a small machine
MIN_ADMITTED: Final = 4  # photos that are admitted even if the network is slow
QUEUE_TIMEOUT: Final = 5.0  # seconds that an admitted photo may wait; a later answer is worthless
EWMA_ALPHA: Final = 0.1  # weight of the latest answer in the moving average


class Admission:
    """Counts the photos in flight, and estimates the wait of one more. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_wait: float = MAX_WAIT) -> None:
        """Admit photos up to an estimated wait of `max_wait` seconds."""
        self._clock = clock
        self._max_wait = max_wait
        self._in_flight = 0
        self._pace = 0.0  # seconds between two answers while there is work
        self._left = -math.inf  # time of the latest answer
        self._limit = max_wait

    @property
    def in_flight(self) -> int:
        """The number of admitted photos without an answer."""
        return self._in_flight

    @property
    def wait(self) -> float:
        """The estimated wait of one more photo, in seconds."""
        return self._in_flight * self._pace

    def check(self) -> None:
        """Raise Unavailable, with the seconds until a retry may succeed, if the queue is full.

        After a refusal the queue is kept shorter until it has drained. A queue that stays long serves no
        client sooner, and every client after the rush would wait for it.
        """
        drained = self._max_wait / 2
        if self.wait <= drained / 2:
            self._limit = self._max_wait
        if self._in_flight < MIN_ADMITTED or (self.wait <= self._limit and self._in_flight < MAX_IN_FLIGHT):
            return
        self._limit = drained
        raise Unavailable(
            f"{self._in_flight} photos are already waiting, about {self.wait:.1f} seconds; try again "
            "shortly.",
            retry_after=max(1, math.ceil(self.wait)),
        )

    def in_time(self, seconds: float) -> bool:
        """Return whether one more photo can be answered within `seconds`, as far as the estimate knows."""
        return not self._in_flight or self.wait + self._pace <= seconds

    def missed(self, seconds: float, in_flight: int) -> None:
        """Learn that a photo, admitted as one of `in_flight`, was not answered within `seconds`.

        Without this an estimate that is too low stays: late answers are cancelled, so none would correct it.
        """
        self._pace = max(self._pace, seconds / in_flight)

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Enter the queue; yield the deadline by the clock. Raises Unavailable.

        Failures and cancellations do not change the estimated rate.
        """
        self.check()
        came = self._clock()
        self._in_flight += 1
        try:
            yield came + QUEUE_TIMEOUT
            now = self._clock()
            # a photo in an empty queue took its whole time, any other the time since the answer before it
            taken = now - max(came, self._left)
            self._pace = self._pace + EWMA_ALPHA * (taken - self._pace) if self._pace else taken
            self._left = now
        finally:
            self._in_flight -= 1

"""The bodies of requests while they are held in memory: a limit for each, and a fair one for all together."""

import asyncio
import math
import time
from collections import Counter
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from app.errors import Unavailable
from app.web.access import network
from app.web.problems import too_large

SOON: Final = 5  # seconds, within which most uploads under way will have been read
PACE_SECONDS: Final = 0.5  # over which the pace of an upload is averaged


class Upload:
    """The body of one request, as it streams in; `ended` once all of it has been received.

    To be made in the task of the request, and to be closed.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, budget: "UploadBudget") -> None:
        headers = Headers(scope=scope)
        self.client = network(scope["client"][0]) if scope.get("client") else ""
        self._receive = receive
        self._limit = limit
        self._budget = budget
        self._task = asyncio.current_task()
        self._declared = int(headers.get("content-length", "0"))
        self._recent, self._last = 0.0, time.monotonic()
        self.held = 0  # bytes
        self.ended = self._declared == 0 and "transfer-encoding" not in headers
        self.gave_way = False

    async def receive(self) -> Message:
        """Return the next message. Raises PayloadTooLarge once the body is, or declares to be, too large.

        Raises Unavailable where there is no room for it.
        """
        if self._declared > self._limit:
            raise too_large(self._limit)
        message = await self._receive()
        count = len(message.get("body", b""))
        self.ended = self.ended or not message.get("more_body", False)
        if self.held + count > self._limit:
            raise too_large(self._limit)
        now = time.monotonic()
        self._recent = self.pace(now) + count
        self._last = now
        self._budget.take(self, count)
        return message

    def pace(self, now: float) -> float:
        """Return the bytes that arrived of late."""
        return self._recent * math.exp((self._last - now) / PACE_SECONDS)

    def give_way(self) -> None:
        """Cancel the request, and give its room back."""
        self.gave_way = True
        self.close()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Give the room back."""
        self._budget.release(self)


class UploadBudget:
    """The bytes of uploads that all requests together may hold in memory.

    Where there is no more room, the client with the most bytes gives way, with the slowest of its uploads
    that have not ended: so one client's uploads cannot keep those of the others out, however they trickle.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._uploads: set[Upload] = set()  # those that hold anything

    def take(self, upload: Upload, count: int) -> None:
        """Take room for `count` bytes. Raises Unavailable where this upload is the one to give way."""
        upload.held += count
        self._taken += count
        self._uploads.add(upload)
        while self._taken > self._limit:
            slowest = self._slowest()
            if slowest is upload or slowest is None:
                raise Unavailable("Too many uploads are under way; try again shortly.", retry_after=SOON)
            slowest.give_way()

    def release(self, upload: Upload) -> None:
        """Give the room of an upload back."""
        self._uploads.discard(upload)
        self._taken -= upload.held
        upload.held = 0

    def _slowest(self) -> Upload | None:
        """Return the upload that must give way, if any is still arriving."""
        by_client: Counter[str] = Counter()
        for upload in self._uploads:
            by_client[upload.client] += upload.held
        now = time.monotonic()
        arriving = [upload for upload in self._uploads if not upload.ended]
        return max(arriving, key=lambda each: (by_client[each.client], -each.pace(now)), default=None)

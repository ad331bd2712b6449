"""Who may ask, and how often: keys for programs, a session for the page, a pace for each client.

Knows nothing of requests; `now` is the time of time.monotonic for the pace, and of time.time for sessions.
"""

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

SESSION_SECONDS: Final = 12 * 3600  # a day of looking at photos; a reload of the page gives another one
CLIENTS: Final = 10_000  # that are remembered; the one heard of longest ago is forgotten first


class ApiKeys:
    """The keys of the settings, compared in constant time; and sessions that they sign."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        # made from the keys, so that every process of a site takes every session; and slowly, so that who has
        # a session cannot try out keys
        self._secret = (
            hashlib.scrypt("\n".join(keys).encode(), salt=b"session", n=2**14, r=8, p=1) if keys else b""
        )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def matches(self, candidate: str) -> bool:
        """Whether it is one of the keys; it takes as long whether it is or not."""
        digest = hashlib.sha256(candidate.encode("utf-8", "replace")).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0

    def session(self, now: float) -> str:
        """What the page shows instead of a key: when it ends, and a signature."""
        end = str(int(now) + SESSION_SECONDS)
        return f"{end}.{self._sign(end)}"

    def verify_session(self, session: str, now: float) -> bool:
        """Whether it is a session that was given out and has not ended."""
        end, _, signature = session.partition(".")
        signed = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(end).encode())
        return signed and end.isdecimal() and now < int(end)

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "replace"), "sha256").hexdigest()


class RateLimiter:
    """So many requests a minute for each client, at once or one after another: a bucket of tokens each."""

    def __init__(self, per_minute: int) -> None:
        """0 is without a limit."""
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: tokens, when

    def retry_after(self, client: str, now: float) -> float:
        """Take one of the client's tokens: 0, or how many seconds it is until there is one."""
        if not self._per_minute:
            return 0.0
        client = _network(client)
        tokens, then = self._buckets.pop(client, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - then) * self._per_minute / 60)
        granted = tokens >= 1
        self._buckets[client] = (tokens - granted, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (1 - tokens) * 60 / self._per_minute


def _network(client: str) -> str:
    """An IPv4 address as it is, and of an IPv6 address the 64 bits that a household has for itself."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client[:64]
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))

"""Access: API keys for programs, a session for the page, a rate limit for each client."""

import hashlib
import hmac
import ipaddress
import math
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.errors import TooManyRequests, Unauthorized
from app.web.hosts import frame_origins

SESSION: Final = "session"  # the cookie
SESSION_SECONDS: Final = 12 * 3600  # a day of looking at photos; a reload of the page gives a new one
CLIENTS: Final = 10_000  # clients remembered; the least recent one is forgotten first


def admit(request: Request) -> None:
    """Check the rate limit and the key of a request. Raises TooManyRequests, Unauthorized."""
    service = request.state.service
    client = request.client.host if request.client else ""
    if wait := service.limiter.retry_after(client, time.monotonic()):
        limit = service.settings.rate_limit
        raise TooManyRequests(
            f"The limit is {limit} requests a minute for each client; wait a little.",
            retry_after=math.ceil(wait),
        )
    if service.keys and not (_has_key(request) or _has_session(request)):
        raise Unauthorized(
            "A key is needed, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. On the page: reload it."
        )


def _has_key(request: Request) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    candidate = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    matches: bool = request.state.service.keys.matches(candidate)
    return matches


def _has_session(request: Request) -> bool:
    """Return whether the request has a session and is from the page, not from another site's."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    # behind a proxy the Host may be another one than the browser's; then the browser's own word counts
    foreign = site not in ("same-origin", "none") if site else _host(origin) != request.headers.get("host")
    if origin and foreign:
        return False
    session = request.cookies.get(SESSION, "")
    verified: bool = request.state.service.keys.verify_session(session, time.time())
    return verified


def _host(origin: str | None) -> str:
    return (origin or "").partition("://")[2].lower()


def set_session(request: Request, response: Response) -> None:
    """Set the cookie with which the page asks in place of a key, where keys are needed."""
    keys = request.state.service.keys
    secure = request.url.scheme == "https"
    framed = bool(frame_origins(request.state.service.settings, os.environ))
    if keys:
        response.set_cookie(
            SESSION,
            keys.session(time.time()),
            max_age=SESSION_SECONDS,
            path=request.scope.get("app_root_path", "") + "/",
            httponly=True,
            # within the frame of another site a browser sends no stricter cookie
            samesite="none" if framed and secure else "strict",
            secure=secure,
        )


class ApiKeys:
    """The keys of the settings, compared in constant time, and the sessions that they sign."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        # derived from the keys, so that every process of a site accepts every session; and slowly, so that a
        # session cannot be used to guess keys
        self._secret = (
            hashlib.scrypt("\n".join(keys).encode(), salt=b"session", n=2**14, r=8, p=1) if keys else b""
        )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def matches(self, candidate: str) -> bool:
        """Return whether the candidate is one of the keys, in constant time."""
        digest = hashlib.sha256(candidate.encode("utf-8", "replace")).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0

    def session(self, now: float) -> str:
        """Return a session: its end in seconds of time.time, and a signature."""
        end = str(int(now) + SESSION_SECONDS)
        return f"{end}.{self._sign(end)}"

    def verify_session(self, session: str, now: float) -> bool:
        """Return whether the session is signed by these keys and has not ended at `now` (time.time)."""
        end, _, signature = session.partition(".")
        signed = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(end).encode())
        return signed and end.isdecimal() and now < int(end)

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "replace"), "sha256").hexdigest()


class RateLimiter:
    """A number of requests a minute for each client: a token bucket each."""

    def __init__(self, per_minute: int) -> None:
        """Allow `per_minute` requests; 0 is without a limit."""
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: tokens, when

    def retry_after(self, client: str, now: float) -> float:
        """Take a token at `now` (time.monotonic); return 0, or the seconds until there is one."""
        if not self._per_minute:
            return 0.0
        client = network(client)
        tokens, then = self._buckets.pop(client, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - then) * self._per_minute / 60)
        granted = tokens >= 1
        self._buckets[client] = (tokens - granted, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (1 - tokens) * 60 / self._per_minute


def network(client: str) -> str:
    """Return an IPv4 address as it is, and the /64 network of an IPv6 address, which one household has."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client[:64]
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))

"""An image from the web, by its link: fetched on behalf of any client, and so only from public addresses.

The guard stands where a connection is made, and looks at the address that is connected to: after every
redirect, for every answer of the DNS. What comes before, the rules for links, only makes the refusals plain.
"""

import asyncio
import ipaddress
import re
import socket
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urljoin

import aiohttp
import idna

from app.errors import BadImage, FetchFailed, FetchTimeout, UnsupportedMedia, UrlRefused

TOTAL: Final = 10.0  # seconds for all of it: clients have left by then
MAX_REDIRECTS: Final = 10  # as browsers and curl's users are used to
MAX_URL: Final = 2_000  # characters; no browser's limit is lower
CHUNK: Final = 64 * 1024
AGENT: Final = "fastai-now"  # in Via: a server that meets it in a request is being asked by itself

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

# Networks that are not public, or not one host's own. Sources: the IANA special-purpose registries of
# IPv4 and IPv6 (all rows, whether "globally reachable" or not), RFC 5771 and 1112 (multicast, reserved), RFC
# 4291 (2000::/3 is all of IPv6 that is global unicast), and the clouds on their metadata services.
# Python's is_private knows no carrier-grade NAT; its is_global lets NAT64, 6to4, IPv4-compatible addresses
# and 168.63.129.16 pass.
BLOCKED: Final[Networks] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network, RFC 791
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598; in it Alibaba's metadata, 100.100.100.200
        "127.0.0.0/8",  # loopback, RFC 1122
        "168.63.129.16/32",  # Azure's host, a public address in name only
        "169.254.0.0/16",  # link-local, RFC 3927; in it the metadata of most clouds, 169.254.169.254
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # IETF protocols, RFC 6890; in it Oracle's metadata, 192.0.0.192
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.31.196.0/24",  # AS112, RFC 7535
        "192.52.193.0/24",  # AMT, RFC 7450
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "192.175.48.0/24",  # AS112, RFC 7534
        "198.18.0.0/15",  # benchmarks, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved and broadcast, RFC 1112
        "::/3",  # loopback, IPv4-mapped and -compatible, NAT64 (64:ff9b::/96), discard-only (100::/64)
        "2001::/23",  # IETF protocols, RFC 2928: Teredo, benchmarks, ORCHID, DRIP
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056: an IPv4 address within
        "2620:4f:8000::/48",  # AS112, RFC 7534
        "3fff::/20",  # documentation, RFC 9637
        "4000::/2",  # not allocated; in it segment routing (5f00::/16)
        "8000::/1",  # unique local (fc00::/7), link-local (fe80::/10), multicast (ff00::/8); not allocated
    )
)
ISATAP: Final = (0x00005EFE, 0x02005EFE)  # RFC 5214: an IPv4 address in the last 32 of any 64 bits after this

# A host in ASCII, as punycode is. Nothing before it, no user.
LINK: Final = re.compile(r"(?i)https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?")
FOREIGN_HOST: Final = re.compile(r"[^/?#:@\\\[\]\s]+")
NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
INSIDE: Final = (
    "",
    "localhost",
    "localdomain",
    "local",
    "internal",
    "arpa",
)  # RFC 6761, 6762, 8375 and custom
NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+")  # a last label that makes a host an IPv4 address


class Guard(NamedTuple):
    """The rule for hosts of images: none in these networks, and these ports alone."""

    blocked: Networks = BLOCKED
    ports: tuple[int, ...] = (80, 443)

    def check_link(self, url: str) -> str:
        """Return the link in ASCII if every parser finds the same host in it. Raises UrlRefused."""
        url = ascii_link(url)
        parts = LINK.fullmatch(url)
        if len(url) > MAX_URL or not parts or "\\" in url or "#" in url:
            raise refused()
        host = parts[1].lower()
        if host.rpartition(".")[2] in INSIDE or not {".", ":"} & set(host):
            raise refused()
        if NUMBER.fullmatch(host.rpartition(".")[2]):
            _address(host)  # 127.1, 0x7f000001 and 017700000001 are all 127.0.0.1
        port = int(parts[2][1:]) if parts[2] else 443 if url.lower().startswith("https") else 80
        if port not in self.ports:
            raise refused()
        return url

    def open_socket(self, target: tuple[Any, ...]) -> socket.socket:
        """Open the socket for an entry of `getaddrinfo` before it is connected. Raises UrlRefused."""
        family, kind, protocol, _, address = target
        if is_blocked(address[0], self.blocked) or address[1] not in self.ports:
            raise refused()
        return socket.socket(family, kind, protocol)


PUBLIC: Final = Guard()


def ascii_link(url: str) -> str:
    """Return a link with its international host in punycode, and its path percent-encoded, as browsers do.

    Raises UrlRefused for a host that other scripts disguise: ①②⑦.0.0.1 is 127.0.0.1 to a resolver.
    """
    scheme, separator, rest = url.partition("://")
    host = FOREIGN_HOST.match(rest)
    if host and not host[0].isascii():
        try:
            encoded = idna.encode(host[0], uts46=True).decode()
        except idna.IDNAError:
            raise refused() from None
        if "xn--" not in encoded:
            raise refused()
        rest = encoded + rest[host.end() :]
    return scheme + separator + NOT_ASCII.sub(lambda found: quote(found[0]), rest)


def is_blocked(address: str, blocked: Networks = BLOCKED) -> bool:
    """Tell whether an address is within one of the networks, or hides an IPv4 address as ISATAP does."""
    number = _address(address)
    hidden = number.version == 6 and (int(number) >> 32) & 0xFFFFFFFF in ISATAP
    return hidden or any(number in network for network in blocked)


def refused() -> UrlRefused:
    """Make the one refusal: it tells nothing about the network behind this server."""
    return UrlRefused(
        "No image is fetched from this link; a public address that begins with http:// or https:// was "
        "expected. Download the image and upload it instead."
    )


async def fetch_image(url: str, limit: int, guard: Guard = PUBLIC) -> bytes:
    """Fetch the file behind a link, up to `limit` bytes. The decoder will tell what it is.

    Raises UrlRefused, FetchFailed, FetchTimeout, UnsupportedMedia for a web page, and BadImage for more than
    `limit` bytes.
    """
    connector = aiohttp.TCPConnector(socket_factory=guard.open_socket, happy_eyeballs_delay=None, limit=1)
    headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": AGENT, "Via": f"1.1 {AGENT}"}
    try:
        async with (
            asyncio.timeout(TOTAL),
            aiohttp.ClientSession(
                connector=connector,
                headers=headers,
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                async with session.get(guard.check_link(url), allow_redirects=False) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _read(response, limit)
                    url = urljoin(url, response.headers.get("location", ""))
    except TimeoutError as error:
        raise FetchTimeout(
            "The host of the link did not answer in time; upload the image instead."
        ) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _failed() from error
    raise _failed()


def _failed() -> FetchFailed:
    return FetchFailed("The link could not be fetched. Does it open in a browser? Or upload the image.")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer."""
    if response.status != 200 or response.headers.get("content-encoding", "identity") != "identity":
        raise _failed()
    data = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        data += chunk
        if len(data) > limit:
            raise BadImage(f"The link leads to over {limit / 1e6:.0f} MB, the limit here.", "image-too-large")
    if response.content_type == "text/html" and data.lstrip().startswith(b"<"):
        raise UnsupportedMedia(
            "That link leads to a web page, not to an image; right-click the image and copy its own address.",
            "not-an-image",
        )
    return bytes(data)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address that is written out in full. Raises UrlRefused for anything else."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise refused() from None

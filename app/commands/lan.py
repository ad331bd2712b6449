"""The address of this machine in its network, with a QR code for a phone's camera."""

import socket
import sys
from typing import Any, Final

EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # the hosts that listen on all addresses
ELSEWHERE: Final = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737): nothing is sent there


def show_address(host: str, port: int) -> None:
    """Print the address for phones in the same network, if the server listens there and a person looks."""
    if host not in EVERYWHERE or not port or not sys.stdout.isatty():
        return
    address = local_address()
    if not address:
        return
    import segno

    link = f"http://{address}:{port}"
    print(f"On a phone in the same network, open {link} or scan:\n")
    code: Any = segno.make(link, micro=False)
    code.terminal(compact=True)


def local_address() -> str:
    """Return the address from which this machine reaches other networks; empty without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)  # it chooses a route, and sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            return ""
    return "" if address.startswith("127.") else address

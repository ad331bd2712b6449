"""`python -m tests.everywhere PORT FOLDER LINK...`: fetch links, where every host name is this machine.

Prints one JSON object a link: the sha256 of what was kept, or the error. The certificates that are trusted
are those of SSL_CERT_FILE, as OpenSSL has it.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

from app.checkpoints.containers import check_signature
from app.errors import StartupError
from app.fetching.download import fetch
from app.fetching.transfer import Limits


def main(port: int, folder: Path, links: list[str]) -> None:
    ask = socket.getaddrinfo

    def here(host: Any, asked: Any, *rest: Any, **options: Any) -> Any:
        return ask("127.0.0.1", port, type=socket.SOCK_STREAM)

    socket.getaddrinfo = here
    limits = Limits(delay=0.01, total=20)
    for link in links:
        try:
            task = fetch(link, folder, verify=check_signature, progress=lambda *_: None, limits=limits)
            result = {"sha256": asyncio.run(task).sha256}
        except StartupError as error:
            result = {"error": str(error)}
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

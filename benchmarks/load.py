"""A client that costs little: raw sockets, a request built once, answers read by their Content-Length.

    python benchmarks/load.py URL PHOTO --connections 8 --seconds 5
    python benchmarks/load.py URL PHOTO --rate 80 --seconds 5

Closed loop: each connection sends its next request when it has its answer. Open loop: requests are sent at
their times, whatever came back; then one at a time until an answer is quick again. Prints one JSON object:
the seconds of each answer by status, of the whole, and of the recovery.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT = 120.0  # seconds: an answer that has not come by then is lost
QUEUE_TIMEOUT = 30.0  # seconds after an open loop in which no answer was quick again
MAX_CONNECTIONS = 900  # of the open loop: below the usual limit of 1024 descriptors


class Client:
    """Sends one request again and again and notes how long the answers took."""

    def __init__(self, url: str, photo: bytes) -> None:
        self._url, self._photo, self._place = url, photo, urlsplit(url)
        head = '--b\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n\r\n'
        body = head.encode() + photo + b"\r\n--b--\r\n"
        lines = (
            f"POST /analyze HTTP/1.1\r\nHost: {self._place.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = lines.encode() + body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.open = 0
        self.answers: defaultdict[str, list[float]] = defaultdict(list)
        self.sample = ""  # the body of an answer with status 200
        self.last = 0.0  # when the latest answer came
        self.recovery = 0.0  # seconds from the end of an open loop to the first quick answer

    async def ask(self) -> None:
        """One request, on a connection that is free or a new one; what fails is noted as "failed"."""
        start, status = time.perf_counter(), "failed"
        self.open += 1
        try:
            async with asyncio.timeout(TIMEOUT):
                status = await self._exchange()
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
        self.last = time.perf_counter()
        self.answers[status].append(self.last - start)

    async def _exchange(self) -> str:
        if not self._idle:
            self._idle.append(await asyncio.open_connection(self._place.hostname, self._place.port))
        reader, writer = self._idle.pop()
        kept = False
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = await reader.readexactly(length)
            kept = "connection: close" not in head
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()
        status = head[9:12]
        if status == "200":
            self.sample = body.decode()
        elif status == "503" and "\r\nretry-after: " not in head:
            status = "503 without Retry-After"
        return status

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
        self._idle.clear()

    async def closed(self, connections: int, seconds: float) -> float:
        """So many at once for so long; those under way at the end are waited for. Returns the seconds."""
        start = time.perf_counter()

        async def one() -> None:
            while time.perf_counter() < start + seconds:
                await self.ask()

        await asyncio.gather(*(one() for _ in range(connections)))
        await self.close()
        return self.last - start

    async def opened(self, rate: float, seconds: float, quick: float) -> float:
        """So many a second for so long, then the time until all are answered. Returns the seconds.

        Meanwhile another one asks again and again, until it is answered within `quick` seconds.
        """
        start, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(start + number / rate - time.perf_counter())
            if self.open < MAX_CONNECTIONS:
                tasks.append(asyncio.create_task(self.ask()))
            else:
                self.answers["not sent"].append(0.0)
        end, another = time.perf_counter(), Client(self._url, self._photo)
        while self.recovery < QUEUE_TIMEOUT and not any(s < quick for s in another.answers["200"]):
            await another.ask()
            self.recovery = another.last - end
        await asyncio.gather(*tasks)
        await self.close()
        await another.close()
        return self.last - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--quick", type=float, default=0.25, help="seconds of an answer when all is as usual")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    client = Client(options.url, options.photo.read_bytes())
    loop = (
        client.opened(options.rate, options.seconds, options.quick)
        if options.rate
        else client.closed(options.connections, options.seconds)
    )
    seconds = asyncio.run(loop)
    result = {"seconds": seconds, "answers": client.answers, "recovery": client.recovery}
    print(json.dumps({**result, "sample": client.sample}))


if __name__ == "__main__":
    main()

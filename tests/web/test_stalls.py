"""Requests made of very many small things: none keeps the event loop for more than 20 ms.

The loop is measured within the server, in CPU time of its thread, so that a busy machine does not count.
"""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.conftest import SECONDS, ServerProcess, bears_environment
from tests.http_client import connect, raw

LONGEST = 20.0  # ms
TRIES = 3  # the kernel's own work, such as giving memory back, may fall into a turn: a stall comes every time
CHUNKED = (
    b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
FORM = (
    b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Connection: close\r\n"
)
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
some = random.Random(2026)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe") / "longest"


@pytest.fixture(scope="module")
def watched(start_server: Callable[..., ServerProcess], probe: Path) -> ServerProcess:
    """A ready server whose event loop is watched."""
    server = start_server(module="tests.instrumented", **bears_environment(PROBE=str(probe)))
    server.wait_for("ready after")
    return server


def chunks() -> bytes:
    """Up to ten thousand chunks of a few bytes."""
    size = some.randrange(1, 6)
    return CHUNKED + b"%x\r\n%b\r\n" % (size, b"x" * size) * some.randrange(5_000, 10_000) + b"0\r\n\r\n"


def form(body: bytes) -> bytes:
    return FORM + b"Content-Length: %d\r\n\r\n" % len(body) + body


def returns() -> bytes:
    """A file of carriage returns, and of beginnings of the boundary: the parser looks at each byte."""
    piece = some.choice([b"\r", b"\r\n", b"\r\n--\r", b"-", b"\r\n--b\r", b"\n"])
    return form(FILE + piece * (some.randrange(1_000_000, 3_000_000) // len(piece)) + b"\r\n--b--\r\n")


def part_headers() -> bytes:
    """Parts whose headers have very many parameters, quotation marks or backslashes."""
    option = some.choice([b";", b';a="', b'; filename="\\"', b"; a=b", b'"', b"\\"])
    header = (option * 16_000)[: some.randrange(10_000, 15_000)]
    part = b'--b\r\nContent-Disposition: form-data; name="x"' + header + b"\r\n\r\ny\r\n"
    return form(part * some.randrange(5, 19) + b"--b--\r\n")


def headers() -> bytes:
    """As many headers as are allowed, or one header of as many cookies, addresses or kinds."""
    name, value = some.choice([(b"Cookie", b"a=b;"), (b"Accept", b"a/b,"), (b"X-Forwarded-For", b"1.2.3.4,")])
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return head + name + b": " + (value * 4_000)[: some.randrange(14_000, 15_500)] + b"\r\n\r\n"


def pipelined() -> bytes:
    """A thousand requests at once."""
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    return one * some.randrange(500, 1_000) + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def in_json() -> bytes:
    """JSON of very many members, brackets, escapes, parameters or digits."""
    piece = some.choice([b'"a":"b",', b"[", b'{"a":', b"1,", b"1", b"\\/", b"\\u0041", b";a=b", b"\\n", b" "])
    begin = some.choice([b'{"image":"', b'{"image":"data:image/png', b'{"image":', b'{"url":"', b"{"])
    body = begin + piece * (some.randrange(3_000_000, 9_000_000) // len(piece)) + b'"}'
    return (
        FORM.replace(b"multipart/form-data", b"application/json")
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


@pytest.mark.fault("H20")
@pytest.mark.parametrize("generate", [in_json, chunks, returns, part_headers, headers, pipelined])
def test_no_request_keeps_the_event_loop(
    watched: ServerProcess, probe: Path, generate: Callable[[], bytes]
) -> None:
    for _ in range(TRIES):
        probe.unlink(missing_ok=True)
        clients = [threading.Thread(target=raw, args=(watched, generate())) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(SECONDS)
        assert requests.get(f"{watched.url}/healthz", timeout=SECONDS).status_code == 200
        longest = float(probe.read_text())
        if longest < LONGEST:
            return
    raise AssertionError(f"a turn of the event loop took {longest} ms")


@pytest.mark.fault("H20")
@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_very_many_connections_that_act_at_once_do_not_keep_the_event_loop(
    watched: ServerProcess, probe: Path, sent: bytes
) -> None:
    count = min(400, os.sysconf("SC_OPEN_MAX") // 3)
    for _ in range(TRIES):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(watched)) for _ in range(count)]
            requests.get(f"{watched.url}/healthz", timeout=SECONDS)
            probe.unlink(missing_ok=True)
            watched.process.send_signal(signal.SIGSTOP)
            for client in clients:
                client.sendall(sent)
                client.close()
            watched.process.send_signal(signal.SIGCONT)
        assert requests.get(f"{watched.url}/healthz", timeout=SECONDS).status_code == 200
        longest = float(probe.read_text())
        if longest < LONGEST:
            return
    raise AssertionError(f"a turn of the event loop took {longest} ms")


@pytest.mark.fault("H20", "U16")
def test_newcomers_above_the_bound_cost_little_and_the_bound_holds(
    watched: ServerProcess, probe: Path
) -> None:
    folder = Path(f"/proc/{watched.process.pid}/fd")
    if not folder.exists():
        pytest.skip("the descriptors of another process cannot be counted here")
    before = len(os.listdir(folder))
    limit = min(1000, os.sysconf("SC_OPEN_MAX") // 2)
    count = min(limit + 200, os.sysconf("SC_OPEN_MAX") - 100)
    probe.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        most = 0
        for number in range(count):
            stack.enter_context(connect(watched))
            if number % 50 == 0:
                most = max(most, len(os.listdir(folder)) - before)
        client = stack.enter_context(connect(watched))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        most = max(most, len(os.listdir(folder)) - before)
    assert limit // 2 < most <= limit
    assert float(probe.read_text()) < 2 * LONGEST  # thirty-two newcomers in one turn

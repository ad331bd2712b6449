"""Deadlines: a silent, stalled or trickling client is let go, and nobody else notices."""

import asyncio
import contextlib
import queue
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app.web.connections import Connections
from app.web.protocol import DeadlineProtocol
from tests.conftest import SECONDS


class Hasty(DeadlineProtocol):
    """The same protocol with less patience."""

    header_seconds = 0.5
    span_seconds = 1.0
    span_bytes = 1000
    linger_seconds = 1.0
    open_connections = Connections(50)


ARRIVED = queue.Queue[str]()  # the paths of whole requests
LEFT = queue.Queue[str]()  # the paths of requests whose clients left
LARGE = b"x" * 4_000_000  # more than the buffers of both kernels take


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of bytes in the body, at /large with LARGE, at /wait never."""
    assert scope["type"] == "http"
    length, more, path = 0, True, scope["path"]
    while more or path == "/wait":
        message = await receive()
        if message["type"] == "http.disconnect":
            if path == "/wait":
                LEFT.put(path)
            return
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
        if path == "/wait":
            ARRIVED.put(path)
    body = LARGE if path == "/large" else str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """A uvicorn of its own, in a thread."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started.set()

    config = uvicorn.Config(
        echo, port=0, http=Hasty, loop="asyncio", ws="none", lifespan="off", log_config=None
    )
    server = Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    assert started.wait(SECONDS)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(SECONDS)


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=SECONDS)


def read_to_the_end(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer


def read_answer(client: socket.socket, length: bytes = b"0") -> bytes:
    """An answer of `echo` to a body of that length, on a connection that stays open."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n" + length):
        part = client.recv(65536)
        assert part, answer
        answer += part
    return answer


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
START = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.fault("U14", "U15")
@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HTTP/1.1\r\nHo", START, START + b"x" * 500],
    ids=["nothing", "half headers", "headers alone", "part of the body"],
)
def test_a_request_that_does_not_arrive_is_answered_408_and_closed(
    address: tuple[str, int], sent: bytes
) -> None:
    with connect(address) as client:
        client.sendall(sent)
        answer = read_to_the_end(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert b'"code": "request-timeout"' in answer


@pytest.mark.fault("U15")
def test_headers_that_trickle_have_one_deadline_for_all(address: tuple[str, int]) -> None:
    start = time.monotonic()
    with connect(address) as client:
        client.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - start < SECONDS:
            client.send(b"X-A: b\r\n" if answer else b"P")
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 40")


def test_a_slow_but_steady_upload_is_let_through(address: tuple[str, int]) -> None:
    """Three spans of time, in each of which enough arrives."""
    with connect(address) as client:
        client.sendall(START)
        client.settimeout(0.15)
        for _ in range(20):
            client.sendall(b"x" * 5_000)
            try:
                client.recv(1)
                break
            except TimeoutError:
                continue
        client.settimeout(SECONDS)
        read_answer(client, b"100000")


@pytest.mark.parametrize(
    "start",
    [
        START.replace(b"100000", b"40000000"),
        START.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
        + b"4c4b40\r\n"
        + b"x" * 5_000_000
        + b"\r\n",
    ],
    ids=["declared", "already sent"],
)
def test_the_least_pace_of_an_upload_grows_with_its_size(address: tuple[str, int], start: bytes) -> None:
    """A trickle that a small upload may have, but not a large one."""
    with connect(address) as client:
        client.sendall(start)
        client.settimeout(0.15)
        answer, sent = b"", 0  # a body has 40 spans: without a least pace, some 260 are sent
        while not answer and (sent := sent + 1) < 60:
            client.sendall(b"5dc\r\n" + b"x" * 1500 + b"\r\n")
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_after_an_answer_is_closed_when_the_next_request_stalls(
    address: tuple[str, int],
) -> None:
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_answer(client)
        client.sendall(b"GET / HT")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 408")


@pytest.mark.fault("U15", "U16")
def test_many_silent_clients_are_all_let_go_while_others_are_served(address: tuple[str, int]) -> None:
    silent = [connect(address) for _ in range(40)]
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 200")
    for one in silent:
        assert read_to_the_end(one).startswith(b"HTTP/1.1 408")
        one.close()


@pytest.mark.fault("H02")
def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]) -> None:
    with connect(address) as client:
        for body in (b"1", b"22", b"333"):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while not answer.endswith(b"\r\n\r\n3"):
            answer += client.recv(65536)
    assert re.findall(rb"\r\n\r\n(\d)", answer) == [b"1", b"2", b"3"]


def test_a_client_that_still_sends_reads_why_it_was_refused(address: tuple[str, int]) -> None:
    """A megabyte more than what was refused at its beginning: without time to read, a reset comes first."""
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
        for _ in range(16):
            client.sendall(b"x" * 65_536)
        answer = read_to_the_end(client)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_never_stops_sending_is_cut_off(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(b"hello\r\n\r\n")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 400 ")
        start = time.monotonic()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while time.monotonic() - start < SECONDS:
                client.sendall(b"x" * 65_536)


@pytest.mark.fault("U16")
def test_a_newcomer_takes_the_place_of_the_connection_that_is_silent_for_longest(
    address: tuple[str, int],
) -> None:
    silent = [connect(address) for _ in range(50)]
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 200")
    with contextlib.suppress(ConnectionResetError):
        assert silent[0].recv(1) == b""  # at once, without the 408 of the others
    for one in silent:
        one.close()


def test_an_upload_keeps_its_place_while_others_are_idle(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        upload = stack.enter_context(connect(address))
        upload.sendall(START.replace(b"Content", b"Expect: 100-continue\r\nContent"))
        assert upload.recv(65536).startswith(b"HTTP/1.1 100")
        for _ in range(50):  # the last takes the place of the first idle one
            client = stack.enter_context(connect(address))
        client.sendall(GET)
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        upload.sendall(b"x" * 100_000)
        read_answer(upload, b"100000")


@pytest.mark.fault("H22")
def test_where_nobody_is_idle_a_newcomer_takes_the_place_of_the_upload_that_takes_longest(
    address: tuple[str, int],
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            upload = stack.enter_context(connect(address))
            upload.sendall(START.replace(b"Content", b"Expect: 100-continue\r\nContent"))
            assert upload.recv(65536).startswith(b"HTTP/1.1 100")  # the application waits for its body
        client = stack.enter_context(connect(address))
        client.sendall(GET)
        assert read_answer(client).startswith(b"HTTP/1.1 200")


def test_where_all_are_being_answered_a_newcomer_is_refused(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(address)).sendall(GET.replace(b"/", b"/wait", 1))
            ARRIVED.get(timeout=SECONDS)
        answer = read_to_the_end(stack.enter_context(connect(address)))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
    for _ in range(50):
        assert LEFT.get(timeout=SECONDS) == "/wait"


@pytest.mark.fault("H24")
@pytest.mark.parametrize("requests", [1, 3])
def test_requests_are_answered_after_the_client_has_ended_its_side(
    address: tuple[str, int], requests: int
) -> None:
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" * requests)
        client.shutdown(socket.SHUT_WR)
        answer = read_to_the_end(client)
    assert re.findall(rb"HTTP/1.1 (\d+).*?\r\n\r\n(\d)", answer, re.DOTALL) == [(b"200", b"5")] * requests


@pytest.mark.fault("H24")
@pytest.mark.parametrize(
    "rest", [b"Content-Length: 5\r\n\r\nhell", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_a_client_that_ends_its_side_in_the_middle_of_a_body_is_told(
    address: tuple[str, int], rest: bytes
) -> None:
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + rest)
        client.shutdown(socket.SHUT_WR)
        answer = read_to_the_end(client)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"before its body was complete" in answer


@pytest.mark.fault("H24")
def test_a_client_that_ends_its_side_and_waits_for_long_reads_an_interim_answer(
    address: tuple[str, int],
) -> None:
    """By which those are found out that have left: they reset what they get."""
    with connect(address) as client:
        client.sendall(GET.replace(b"/", b"/wait", 1))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert LEFT.get(timeout=SECONDS) == "/wait"


@pytest.mark.fault("L02")
def test_a_client_that_leaves_while_it_waits_is_noticed(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(GET.replace(b"/", b"/wait", 1))
    assert LEFT.get(timeout=SECONDS) == "/wait"


@pytest.mark.fault("H21")
@pytest.mark.parametrize("version", [b"1.1", b"1.0"], ids=["kept", "closed"])
@pytest.mark.parametrize("pipelined", [1, 50])
def test_a_client_that_does_not_read_loses_its_connection(
    address: tuple[str, int], version: bytes, pipelined: int
) -> None:
    with connect(address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET.replace(b"/", b"/large", 1).replace(b"1.1", version) * pipelined)
        hung_up = select.poll()
        hung_up.register(client, select.POLLERR)
        assert hung_up.poll(SECONDS * 1000)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(client)


def test_a_client_that_reads_slowly_is_let_through(address: tuple[str, int]) -> None:
    """A part of the answer in each of three spans; the client's kernel may not take all of it beforehand."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        client.settimeout(SECONDS)
        client.connect(address)
        client.sendall(GET.replace(b"/", b"/large", 1))
        start, read = time.monotonic(), 0
        while time.monotonic() - start < 3 * Hasty.span_seconds:
            read += len(client.recv(10_000))
            select.select([], [], [], 0.1)
        while read < len(LARGE):
            read += len(client.recv(65536))

"""Deadlines: a silent, stalled or trickling client is let go, and nobody else notices."""

import asyncio
import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app.web.protocol import DeadlineProtocol
from tests.conftest import SECONDS


class Hasty(DeadlineProtocol):
    """The same protocol with less patience."""

    header_seconds = 0.5
    body_seconds = 1.0
    body_bytes = 1000
    linger_seconds = 1.0
    refused_a_second = 1.0
    longest_pause = 1.0
    max_connections = 50


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes in the body, at /busy with a refusal; gives up when the client
    does.
    """
    assert scope["type"] == "http"
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    if busy := scope["path"] == "/busy":
        scope["code"] = "overloaded"  # as the application itself notes its refusals
    await send({"type": "http.response.start", "status": 503 if busy else 200, "headers": headers})
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
    assert time.monotonic() - start < 5


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


@pytest.mark.fault("L01")
def test_who_is_refused_and_asks_again_at_once_is_read_a_little_later(address: tuple[str, int]) -> None:
    start = time.monotonic()
    with connect(address) as client, connect(address) as other:
        for _ in range(2):  # the first one costs too little to be put off
            client.sendall(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(client).startswith(b"HTTP/1.1 503 ")
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        first, _, _ = select.select([client, other], [], [], SECONDS)
        assert first == [other]
        for one in (other, client):
            assert read_answer(one).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - start >= Hasty.longest_pause


def test_what_is_sent_ahead_behind_a_refusal_is_answered_later_too(address: tuple[str, int]) -> None:
    start = time.monotonic()
    busy, usual = (b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"/busy", b"/"))
    with connect(address) as client:
        client.sendall(busy + busy + usual)
        answer = b""
        while answer.count(b"\r\n\r\n0") < 3:
            part = client.recv(65536)
            assert part, answer
            answer += part
    assert time.monotonic() - start >= Hasty.longest_pause


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


def test_where_nobody_is_silent_the_newcomer_is_refused(address: tuple[str, int]) -> None:
    busy = [connect(address) for _ in range(50)]
    for one in busy:
        one.sendall(START.replace(b"Content", b"Expect: 100-continue\r\nContent"))
        assert one.recv(65536).startswith(b"HTTP/1.1 100")  # the application waits for its body
    with connect(address) as client:
        answer = read_to_the_end(client)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer
    for one in busy:
        one.close()

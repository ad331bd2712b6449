"""Deadlines: a silent, stalled or trickling client is let go, and nobody else notices."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app.protocol import DeadlineProtocol
from tests.conftest import SECONDS


class Hasty(DeadlineProtocol):
    """The same protocol with less patience."""

    header_seconds = 0.5
    body_seconds = 1.0
    body_bytes = 1000


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes in the body; gives up when the client does."""
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


START = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


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
        answer = b""
        while not answer.endswith(b"\r\n\r\n100000"):
            answer += client.recv(65536)


def test_an_idle_connection_after_an_answer_is_closed_when_the_next_request_stalls(
    address: tuple[str, int],
) -> None:
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\r\n\r\n0"):
            answer += client.recv(65536)
        client.sendall(b"GET / HT")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 408")


def test_many_silent_clients_are_all_let_go_while_others_are_served(address: tuple[str, int]) -> None:
    silent = [connect(address) for _ in range(40)]
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_the_end(client).startswith(b"HTTP/1.1 200")
    for one in silent:
        assert read_to_the_end(one).startswith(b"HTTP/1.1 408")
        one.close()


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]) -> None:
    with connect(address) as client:
        for body in (b"1", b"22", b"333"):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while not answer.endswith(b"\r\n\r\n3"):
            answer += client.recv(65536)
    assert re.findall(rb"\r\n\r\n(\d)", answer) == [b"1", b"2", b"3"]

"""A client that sends what it is told, byte for byte, and what every refusal must look like."""

import contextlib
import socket
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.conftest import SECONDS, ServerProcess


def connect(server: ServerProcess) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), timeout=SECONDS)


def raw(server: ServerProcess, *parts: bytes) -> bytes:
    """Send bytes as they are and read all that comes back until the server closes."""
    answer = b""
    with (
        connect(server) as client,
        # a server that closes with bytes of ours unread resets the connection; its answer came before
        contextlib.suppress(ConnectionResetError, BrokenPipeError),
    ):
        for part in parts:
            client.sendall(part)
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def assert_problem(answer: requests.Response, status: int, code: str) -> dict[str, Any]:
    """RFC 9457, with our members."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return problem  # type: ignore[no-any-return]

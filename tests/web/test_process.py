"""The serving process: its end, its descriptors, and the machines it finds itself on."""

import contextlib
import http.client
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import ROOT, SECONDS, ServerProcess, bears_environment, image_bytes, retries
from tests.http_client import connect

pytestmark = pytest.mark.slow
PHOTO = image_bytes("b01_12mp_3000x4000.jpg")
SMALL = image_bytes("a00_224x224.jpg")
HEAD = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"


def ready(server: ServerProcess) -> ServerProcess:
    server.wait_for("ready after")
    return server


def read_to_the_end(client: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            answer += part
    return answer


@pytest.mark.fault("P01")
def test_sigterm_lets_requests_under_way_be_answered(start_server: Callable[..., ServerProcess]) -> None:
    server = ready(start_server(**bears_environment()))
    clients = [connect(server) for _ in range(5)]
    for client in clients:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PHOTO))
        assert client.recv(65536).startswith(b"HTTP/1.1 100")  # it is under way
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("Shutting down")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url}/healthz", timeout=SECONDS)
    for client in clients:
        client.sendall(PHOTO)
    for client in clients:
        assert read_to_the_end(client).startswith(b"HTTP/1.1 200 ")
        client.close()
    assert server.process.wait(SECONDS) == 0


@pytest.mark.alone
@pytest.mark.fault("P01")
def test_sigterm_loses_no_request_of_clients_that_keep_their_connections(
    start_server: Callable[..., ServerProcess],
) -> None:
    """Each client asks again at once, until an answer announces the end of its connection."""
    server = ready(start_server(**bears_environment()))

    def ask_until_the_last(path: str, pause: float) -> int:
        client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=SECONDS)
        for count in itertools.count(1):
            client.request(
                "POST" if path == "/analyze" else "GET", path, SMALL, {"content-type": "image/jpeg"}
            )
            answer = client.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
            if answer.getheader("connection") == "close":
                return count
            going.release()
            time.sleep(pause)
        raise AssertionError

    going = threading.Semaphore(0)
    with ThreadPoolExecutor(4) as pool:
        # the last two are mostly idle when the signal comes
        ways = [("/analyze", 0.0), ("/analyze", 0.0), ("/healthz", 0.05), ("/analyze", 0.1)]
        counts = [pool.submit(ask_until_the_last, *way) for way in ways]
        for _ in range(20):
            assert going.acquire(timeout=SECONDS)
        server.process.send_signal(signal.SIGTERM)
        assert sum(count.result(SECONDS) for count in counts) > 20
    assert server.process.wait(SECONDS) == 0


@pytest.mark.fault("P02")
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    start_server: Callable[..., ServerProcess], second: signal.Signals
) -> None:
    server = ready(start_server(**bears_environment()))
    with connect(server) as client:
        client.sendall(HEAD + b"Content-Length: 99\r\n\r\n")
        requests.get(f"{server.url}/healthz", timeout=SECONDS)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Waiting for")
        server.process.send_signal(second)
        assert server.process.wait(SECONDS) == 128 + second


def with_64_descriptors(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A ready server of the bears that may have 64 files and connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        server = start_server(**bears_environment())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return ready(server)


@pytest.mark.fault("P07")
def test_with_64_descriptors_the_surplus_is_refused_and_all_is_well_again(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = with_64_descriptors(start_server)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(connect(server))
            with contextlib.suppress(OSError):
                client.sendall(HEAD + b"Content-Length: 99\r\n\r\n")
        assert server.process.poll() is None
        statuses = set()
        for _ in range(3):
            with contextlib.suppress(requests.ConnectionError):
                statuses.add(requests.get(f"{server.url}/healthz", timeout=SECONDS).status_code)
        assert statuses <= {200, 503}
    assert server.post(SMALL).status_code == 200
    assert "Traceback" not in "".join(server.lines)
    assert sum("have to wait" in line for line in server.lines) <= 1


@pytest.mark.fault("H21", "P01")
def test_clients_that_read_nothing_keep_nobody_out_and_do_not_delay_the_end(
    start_server: Callable[..., ServerProcess],
) -> None:
    """Each has sent a thousand requests ahead; the server ends within its drain time, half a minute."""
    server = with_64_descriptors(start_server)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(connect(server))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        for _ in range(20):
            assert requests.get(f"{server.url}/healthz", timeout=SECONDS).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert "Traceback" not in "".join(server.lines)


@pytest.mark.fault("P04")
def test_it_needs_no_home_and_nothing_in_the_environment_but_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env={"PORT": str(port)})
    try:
        with requests.Session() as session:
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries()))
            assert session.get(f"http://127.0.0.1:{port}/readyz", timeout=SECONDS).status_code == 200
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0


SHELL = "exec {python} -m app serve --port {port} {redirections}"


@pytest.mark.fault("P06")
@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>{pipe}"])
def test_it_serves_without_a_reader_of_its_log(redirections: str, tmp_path: Path) -> None:
    """Closed, on a full disk, and into a pipe that nobody empties."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = SHELL.format(python=sys.executable, port=port, redirections=redirections.format(pipe=pipe))
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env={**os.environ, **bears_environment()})
    url = f"http://127.0.0.1:{port}"
    try:
        with requests.Session() as session:
            session.mount(url, requests.adapters.HTTPAdapter(max_retries=retries()))
            assert session.get(f"{url}/readyz", timeout=SECONDS).status_code == 200
            for _ in range(1200):  # more than the 64 kB that a pipe holds
                assert session.get(f"{url}/healthz", timeout=SECONDS).status_code == 200
            answer = session.post(f"{url}/analyze", files={"file": SMALL}, timeout=SECONDS)
            assert answer.status_code == 200
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0
        os.close(reader)

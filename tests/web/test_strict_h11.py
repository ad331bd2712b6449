"""Requests that two readers could take for two: byte for byte, against a real server."""

import json
import re

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SECONDS, ServerProcess, cpu_seconds, image_bytes
from tests.http_client import connect, raw

POST = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def assert_refused(server: ServerProcess, sent: bytes, status: int, code: str) -> None:
    """A problem, the end of the connection, and one line in the log that has its id."""
    answer = raw(server, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    assert b'"code": "%s"' % code.encode() in body
    identity = re.search(rb"x-request-id: (\w+)", head)
    assert identity
    assert f" {status} {code} " in server.wait_for(rf".*{identity[1].decode()}")[0]
    assert requests.get(f"{server.url}/healthz", timeout=SECONDS).status_code == 200


@pytest.mark.fault("H03")
@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
        POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        POST + b"Content-Length: 3, 3\r\n\r\nabc",
        POST + b"Content-Length: -3\r\n\r\nabc",
        POST + b"Content-Length: 0x3\r\n\r\nabc",
        POST + b"Content-Length: " + b"9" * 6000 + b"\r\n\r\nabc",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=\0b\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 300,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\nY: b\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\n\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: \0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
        GET + b"X: a\r\n b\r\n\r\n",
        GET + b"X: a\rb\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b"X: a\nY: b\r\n\r\n",
        GET.replace(b"\r\n", b"\n") + b"\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT elsewhere.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_an_ambiguous_request_is_refused_and_the_connection_closed(bears: ServerProcess, sent: bytes) -> None:
    assert_refused(bears, sent, 400, "bad-request")


@pytest.mark.fault("U17")
@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri-too-long"),
        (b"GET /" + b"a" * 65_536, 414, "uri-too-long"),
        (GET + b"".join(b"X%d: y\r\n" % n for n in range(200_000)) + b"\r\n", 431, "header-too-large"),
        (GET + b"X: " + b"x" * 32_000_000 + b"\r\n\r\n", 431, "header-too-large"),
        (GET + b"X: " + b"x" * 17_000, 431, "header-too-large"),
        (GET + b"X:\r\n" * 120 + b"\r\n", 431, "header-too-large"),
    ],
    ids=["long address", "its beginning", "many headers", "a long header", "its beginning", "over a hundred"],
)
def test_headers_over_the_limit_are_refused_at_once(
    bears: ServerProcess, sent: bytes, status: int, code: str
) -> None:
    start = cpu_seconds(bears)
    assert_refused(bears, sent, status, code)
    assert cpu_seconds(bears) - start < 0.5


@pytest.mark.fault("H07")
@pytest.mark.parametrize("address", [b"http://elsewhere.example/healthz", b"HTTPS://x:1/healthz"])
def test_an_absolute_address_is_read_as_its_path(bears: ServerProcess, address: bytes) -> None:
    answer = raw(bears, b"GET " + address + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"status":"ok"}')
    for page in (b"http://elsewhere.example", b"http://elsewhere.example?a=b"):
        answer = raw(bears, b"GET " + page + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.fault("H07")
@pytest.mark.parametrize("host", [b"", b"a b/@<script>", b"\xff\xfe", b"x" * 5000, b"[::1", b"a:b:c"])
def test_no_link_is_built_from_the_host_header(bears: ServerProcess, host: bytes) -> None:
    answer = raw(bears, b"GET /healthz/ HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1.1 40[04] ", answer)
    assert not host or host not in answer


@pytest.mark.fault("H02")
def test_pipelined_requests_are_answered_in_order_by_the_application(bears: ServerProcess) -> None:
    last = GET.replace(b"/healthz", b"/nowhere") + b"Connection: close\r\n\r\n"
    answer = raw(bears, GET + b"\r\n" + GET.replace(b"/healthz", b"/readyz") + b"\r\n" + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"404"]
    assert answer.index(b'"ok"') < answer.index(b'"ready"') < answer.index(b"not-found")


def test_a_head_may_arrive_byte_by_byte(bears: ServerProcess) -> None:
    with connect(bears) as client:
        for byte in GET + b"Connection: close\r\n\r\n":
            client.sendall(bytes([byte]))
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.fault("H20")
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_body_is_the_same_however_it_is_divided(bears: ServerProcess, data: st.DataObject) -> None:
    """Into chunks, of one byte too, with extensions and trailers; and into what is sent at once."""
    photo = image_bytes("a00_224x224.jpg")
    size = data.draw(st.sampled_from([1, 2, 7, 100, 5_000, 70_000]))
    ends = st.sampled_from([b"\r\n", b" \r\n", b";a\r\n", b';a="b c"\r\n'])
    chunks = [photo[start : start + size] for start in range(0, len(photo), size)]
    body = b"".join(
        b"%x%b%b\r\n" % (len(chunk), data.draw(ends) if size > 6 else b"\r\n", chunk) for chunk in chunks
    )
    body += b"0\r\n" + b"X-Sum: 1\r\n" * data.draw(st.integers(0, 3)) + b"\r\n"
    cut = data.draw(st.integers(1, len(body)))
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(bears, head, body[:cut], body[cut:])
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == bears.post(photo).json()

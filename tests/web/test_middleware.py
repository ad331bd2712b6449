"""What is around every request: methods, who may read, errors as pages, what is held in memory."""

import asyncio
import contextlib
import json
import re
import select
from collections.abc import Callable
from typing import Any

import pytest
import requests

from app.errors import Unavailable
from app.metrics import Metrics
from app.web.budget import Upload, UploadBudget
from app.web.middleware import RequestMiddleware, RetryThrottle
from tests.conftest import SECONDS, ServerProcess, bears_environment, cpu_seconds, image_bytes, peak_memory
from tests.http_client import assert_problem, connect, raw

PHOTO = image_bytes("a05_640x480.jpg")
FORM = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def ask(server: ServerProcess, method: str, path: str, **options: Any) -> requests.Response:
    return requests.request(method, server.url + path, timeout=SECONDS, **options)


@pytest.mark.fault("H01")
def test_head_is_get_without_a_body(bears: ServerProcess) -> None:
    for path in ("/", "/healthz", "/model", "/static/app.js"):
        plain = {"Accept-Encoding": "identity"}
        head, whole = (ask(bears, method, path, headers=plain) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.fault("H01")
@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/", "GET, HEAD, OPTIONS"), ("/analyze", "OPTIONS, POST"), ("/static/app.js", "GET, HEAD, OPTIONS")],
)
def test_a_method_that_is_not_for_an_address_is_told_those_that_are(
    bears: ServerProcess, path: str, allowed: str
) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        answer = ask(bears, method, path)
        assert_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == allowed
    options = ask(bears, "OPTIONS", path)
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allowed)


@pytest.mark.fault("H01")
def test_the_head_of_analyze_is_not_a_get(bears: ServerProcess) -> None:
    answer = ask(bears, "HEAD", "/analyze")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "OPTIONS, POST", b"")


@pytest.mark.fault("H01")
@pytest.mark.parametrize("method", ["FOO", "get", "PROPFIND", "X" * 20])
@pytest.mark.parametrize("path", ["/", "/analyze", "/static/app.js", "/nowhere"])
def test_a_method_that_does_not_exist_is_a_bad_request(bears: ServerProcess, method: str, path: str) -> None:
    answer = raw(bears, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "bad-request"' in answer


@pytest.mark.fault("H01")
def test_options_of_the_server_as_a_whole(bears: ServerProcess) -> None:
    answer = raw(bears, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"allow: GET, HEAD, OPTIONS, POST" in answer


@pytest.mark.fault("H05")
def test_a_browser_gets_a_page_with_the_sentence_of_the_problem(bears: ServerProcess) -> None:
    address = "/<script>alert(1)</script>"
    for sent, status in (
        ({"method": "GET", "path": address}, 404),
        ({"method": "PUT", "path": "/"}, 405),
        ({"method": "POST", "path": "/analyze", "files": {"file": ("<script>", b"<script>")}}, 415),
    ):
        problem = ask(bears, **sent).json()
        page = ask(bears, **sent, headers={"Accept": BROWSER})
        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert problem["detail"].replace("'", "&#x27;") in page.text
        assert problem["code"] in page.text
        assert page.headers["x-request-id"] in page.text
        assert "<script" not in page.text
        assert page.headers["vary"] == "Accept"


@pytest.mark.fault("H05")
@pytest.mark.parametrize("accept", ["*/*", "", "application/json", "application/problem+json, text/html"])
def test_a_program_gets_the_problem(bears: ServerProcess, accept: str) -> None:
    assert_problem(ask(bears, "GET", "/nowhere", headers={"Accept": accept}), 404, "not-found")


@pytest.mark.fault("H06")
def test_a_line_in_the_log_cannot_be_forged(bears: ServerProcess) -> None:
    name = 'x"\r\nINFO forged\x1b[31m\0.jpg'
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", "User-Agent": "a%0d%0aINFO forged"}
    ask(bears, "POST", "/analyze?a%0aINFO+forged", data=form + b"x\r\n--b--\r\n", headers=headers)
    ask(bears, "GET", "/a%0d%0aINFO%20forged%1b[31m%00")
    assert "GET /a%0D%0AINFO%20forged%1B" in bears.wait_for(r"GET /a%(.*)")[0]
    assert not [line for line in bears.lines if re.match(r"INFO|.*\x1b", line)]


def test_no_answer_is_sent_in_parts(bears: ServerProcess) -> None:
    for span in ("bytes=0-1", "bytes=99999999-", "garbage"):
        answer = ask(bears, "GET", "/static/app.js", headers={"Range": span})
        assert (answer.status_code, answer.content) == (200, ask(bears, "GET", "/static/app.js").content)


@pytest.mark.fault("U09")
def test_a_hundred_thousand_parts_are_refused_at_once(bears: ServerProcess) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
    body = part * 100_000 + b"--b--\r\n"
    start = cpu_seconds(bears)
    answer = raw(bears, FORM + b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert cpu_seconds(bears) - start < 0.5
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert b"too-many-parts" in answer


@pytest.mark.fault("U10")
def test_a_text_field_of_megabytes_is_refused(bears: ServerProcess) -> None:
    answer = ask(bears, "POST", "/analyze", files={"file": (None, "x" * 5_000_000)})
    assert_problem(answer, 400, "field-too-large")


@pytest.mark.fault("U12")
def test_an_endless_body_is_refused_at_the_limit(bears: ServerProcess) -> None:
    with peak_memory(bears) as grown, connect(bears) as client, contextlib.suppress(OSError):
        client.sendall(FORM.replace(b"multipart/form-data; boundary=b", b"image/png"))
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        client.setblocking(False)
        chunk, sent, answer = b"10000\r\n" + b"x" * 65_536 + b"\r\n", 0, b""
        while not answer:
            readable, writable, _ = select.select([client], [client], [], SECONDS)
            if readable:
                answer = client.recv(65_536)
            elif writable:
                sent = (sent + client.send(chunk[sent:])) % len(chunk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert grown() < 40_000  # twice the limit, while the parts become one
    assert ask(bears, "GET", "/healthz").status_code == 200


@pytest.mark.fault("U16")
def test_forty_slow_uploads_keep_nobody_else_out(bears: ServerProcess) -> None:
    slow = [connect(bears) for _ in range(40)]
    try:
        for client in slow:
            client.sendall(FORM + b"Content-Length: 9000000\r\n\r\n--b\r\n")
        for _ in range(5):
            assert bears.post(PHOTO).status_code == 200
        assert ask(bears, "GET", "/healthz").status_code == 200
    finally:
        for client in slow:
            client.close()


# --- pages from elsewhere ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server whose answers may be read by one other site."""
    server = start_server(**bears_environment(APP_CORS_ORIGINS="https://friend.example"))
    server.wait_for("ready after")
    return server


@pytest.mark.fault("H01")
def test_a_page_from_a_friendly_origin_may_ask_and_read(shared: ServerProcess) -> None:
    origin = {"Origin": "https://friend.example"}
    preflight = ask(
        shared, "OPTIONS", "/analyze", headers={**origin, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for answer in (
        ask(shared, "POST", "/analyze", files={"file": PHOTO}, headers=origin),
        ask(shared, "GET", "/nowhere", headers=origin),
    ):
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]


def test_no_other_page_may(shared: ServerProcess, bears: ServerProcess) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    for server, origin in (
        (shared, "https://friend.example.evil.example"),
        (shared, "null"),
        (shared, "http://friend.example"),
        (bears, "https://friend.example"),
    ):
        for method in ("OPTIONS", "PUT"):
            answer = ask(server, method, "/analyze", headers={**asked, "Origin": origin})
            assert "access-control-allow-origin" not in answer.headers


def test_a_star_is_for_all_pages(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(**bears_environment(APP_CORS_ORIGINS="*"))
    answer = ask(server, "GET", "/healthz", headers={"Origin": "https://anybody.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


# --- what is held in memory --------------------------------------------------------------------------------


@pytest.mark.fault("H22")
def test_slow_uploads_give_way_where_there_is_no_more_room(bears: ServerProcess) -> None:
    """64 MB: clients that have sent most of their ten megabytes and then trickle, and others that do not."""
    head = "POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9900000\r\n\r\n"
    clients = [connect(bears) for _ in range(8)]
    try:
        for client in clients:
            client.sendall(head.encode() + b"x" * 9_800_000)
        assert bears.wait_for(r"POST /analyze 503 overloaded")
        for _ in range(20):
            assert bears.post(PHOTO + bytes(3_000_000)).status_code == 200
            for client in clients:
                with contextlib.suppress(OSError):  # one of those that gave way
                    client.send(b"x")
        assert ask(bears, "GET", "/healthz").status_code == 200
    finally:
        for client in clients:
            client.close()
    assert bears.post(PHOTO).status_code == 200


@pytest.mark.fault("H22")
def test_the_client_with_the_most_uploads_gives_way() -> None:
    async def scenario() -> None:
        budget, uploads = UploadBudget(1000), list[Upload]()

        async def arrive(client: str, held: int) -> None:
            scope = {"type": "http", "client": (client, 1), "headers": [(b"content-length", b"9")]}
            uploads.append(Upload(scope, never, 10_000, budget))
            budget.take(uploads[-1], held)
            await never()

        clients = ["1.1.1.1"] * 8 + ["2.2.2.2"]
        tasks = [asyncio.create_task(arrive(client, 100)) for client in clients]
        await asyncio.sleep(0)
        budget.take(uploads[-1], 400)
        assert [upload.gave_way for upload in uploads].count(True) == 3
        assert not uploads[-1].gave_way
        with pytest.raises(Unavailable):
            budget.take(uploads[-1], 501)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


async def never() -> Any:
    """Receive nothing."""
    await asyncio.Event().wait()


@pytest.mark.fault("L01")
def test_a_refused_client_that_retries_immediately_is_read_a_little_later() -> None:
    throttle = RetryThrottle()
    delays = [throttle.delay(1000.0) for _ in range(40)]
    assert delays[:3] == pytest.approx([0.0, 0.01, 0.02])
    assert max(delays) == pytest.approx(0.25)
    assert throttle.delay(1001.0) == 0.0


def test_a_mistake_of_the_server_is_a_problem_and_one_traceback_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("a mistake")

    sent: list[Any] = []

    async def scenario() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "headers": []}
        await RequestMiddleware(broken, Metrics(), 1000, 1000)(scope, receive, send)

    asyncio.run(scenario())
    start, body = sent
    identity = dict(start["headers"])[b"x-request-id"].decode()
    problem = json.loads(body["body"])
    assert (start["status"], problem["code"], problem["request_id"]) == (500, "internal", identity)
    assert b"ZeroDivision" not in body["body"]
    (traceback,) = (record for record in caplog.records if record.exc_info)
    assert identity in traceback.getMessage()

"""Images by their links: where none is fetched from, whatever the link looks like, and what else can fail."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
import requests
import yarl

from app.errors import AppError, BadImage, FetchFailed, FetchTimeout, UnsupportedMedia, UrlRefused
from app.fetching import image
from app.fetching.image import AGENT, BLOCKED, Guard, ascii_link, fetch_image, is_blocked
from tests.conftest import SECONDS, ServerProcess, bears_environment, image_bytes
from tests.http_client import assert_problem
from tests.http_server import Handler, send, serving

PHOTO = image_bytes("a05_640x480.jpg")
LIMIT = 1_000_000
AT_HOME = Guard(tuple(network for network in BLOCKED if network != ipaddress.ip_network("127.0.0.0/8")))

INWARDS = [  # S01: addresses
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("100.64.0.1", "100.100.100.200", "169.254.169.254", "192.0.0.192", "168.63.129.16", "198.18.0.1"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[100::1]", "[2001:db8::1]"),
]
DISGUISED = [  # S02: other ways to write 127.0.0.1 and the like
    *(
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
    ),
    *(
        "0",
        "0x0",
        "127.0.0.01",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ),
    *("[2002:7f00:1::]", "[2001:0:7f00:1::]", "[2606:4700::5efe:7f00:1]", "[2606:4700::200:5efe:7f00:1]"),
    *("[64:ff9b:1::7f00:1]", "[::ffff:0:127.0.0.1]"),
]
SCRIPTS = [
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "ⓛocalhost",
    "\uff11\uff12\uff17.0.0.1",
    "localho\u017ft",
    "127.0.0.1\u2044",
]  # S03
TRICKS = [  # S04, S07
    *("http://1.1.1.1@127.0.0.1/", "http://user:pw@example.com/", "http://127.0.0.1#@example.com/"),
    *(
        "http://example.com\\@127.0.0.1/",
        "http:\\\\127.0.0.1/",
        "http://127.0.0.1\t/",
        "http://exam\r\nple.com/",
    ),
    *(
        "http://example.com/\r\nHost: x",
        "http://example.com:22/",
        "http://example.com:0/",
        "http://example.com:99999/",
    ),
    *("http://[::1/", "http://", "http:///x", "//example.com/", "example.com/x.jpg", " http://1.1.1.1/"),
    *("file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "data:image/png;base64,AAAA"),
    *("javascript:alert(1)", "blob:http://example.com/x", "jar:http://example.com/!/", "http://%31.1.1.1/"),
    *("http://example.com/\\@127.0.0.1/", "http://example.com/x.jpg#@127.0.0.1/"),
    *("http://intranet/x.jpg", "http://metadata/"),
    *("http://localhost/", "http://localhost.localdomain/", "http://" + "a" * 3000 + ".com/"),
]


def fetch(url: str, guard: Guard = AT_HOME) -> bytes:
    return asyncio.run(fetch_image(url, LIMIT, guard))


@contextmanager
def at(answer: Callable[[Handler], None]) -> Iterator[tuple[str, Guard, list[str]]]:
    """A web server on loopback, and a guard that lets nothing else of what is blocked pass."""
    with serving(answer) as (url, asked):
        yield url, AT_HOME._replace(ports=(int(url.rpartition(":")[2]),)), asked


@pytest.fixture(scope="module")
def open_server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server that fetches images, with a proxy in its environment."""
    proxy = "http://127.0.0.1:9"
    server = start_server(
        **bears_environment(APP_ALLOW_URL="true", HTTP_PROXY=proxy, HTTPS_PROXY=proxy, ALL_PROXY=proxy)
    )
    server.wait_for("ready after")
    return server


@pytest.mark.fault("S01", "S02", "S03", "S04", "S07", "S12", "S13")
def test_everything_inwards_is_refused_in_the_same_words(open_server: ServerProcess) -> None:
    hosts = [f"http://{host}/x.jpg" for host in (*INWARDS, *DISGUISED, *SCRIPTS)]
    with serving(lambda handler: send(handler, PHOTO)) as (home, asked):
        details = set()
        for url in (*hosts, *TRICKS, home, home.replace("127.0.0.1", "localhost"), open_server.url):
            answer = requests.get(f"{open_server.url}/analyze?url={quote(url)}", timeout=SECONDS)
            details.add(assert_problem(answer, 422, "url-not-allowed")["detail"])
        assert len(details) == 1
        assert asked == []


@pytest.mark.fault("S01", "S02")
@pytest.mark.parametrize("host", [h.strip("[]") for h in (*INWARDS, *DISGUISED[11:])])
def test_an_address_inwards_is_blocked_where_the_connection_is_made(host: str) -> None:
    assert is_blocked(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with pytest.raises(UrlRefused):
        Guard().open_socket((family, socket.SOCK_STREAM, 0, "", (host, 443)))


@pytest.mark.parametrize("port", [22, 25, 6379, 8080, 9200])
def test_a_port_of_another_service_is_blocked_where_the_connection_is_made(port: int) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    Guard().open_socket((*entry, ("1.1.1.1", 443))).close()
    with pytest.raises(UrlRefused):
        Guard().open_socket((*entry, ("1.1.1.1", port)))


@pytest.mark.parametrize(
    "link",
    [
        "https://bücher.example/bär.jpg?größe=1&x=%C3%BC",
        "https://straße.de/a b.jpg",
        "http://пример.рф/фото.jpg",
        "http://日本語.jp:80/写真.png",
        "http://BÜCHER.example",
        "https://xn--bcher-kva.example/x.jpg",
        "http://1.1.1.1/x.jpg",
    ],
)
def test_an_international_link_is_read_as_aiohttp_reads_it(link: str) -> None:
    ours, theirs = yarl.URL(ascii_link(link)), yarl.URL(link)
    assert ascii_link(link).isascii()
    assert (ours.raw_host, ours.raw_path_qs) == (theirs.raw_host, theirs.raw_path_qs)
    if " " not in link:
        assert Guard().check_link(link) == ascii_link(link)


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111"])
def test_a_public_address_is_not(host: str) -> None:
    assert not is_blocked(host)


def test_whatever_python_calls_private_is_blocked() -> None:
    """Its tables are not ours; where it is the stricter one, we would have missed something."""
    for network in (*ipaddress._IPv4Constants._private_networks, *ipaddress._IPv6Constants._private_networks):  # type: ignore[attr-defined]
        for address in (network[0], network[-1]):
            assert is_blocked(str(address)), address


@pytest.mark.fault("S05")
def test_a_name_that_leads_inwards_is_found_out_when_it_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A DNS that answers with loopback: the name itself is beyond suspicion."""
    with serving(lambda handler: send(handler, PHOTO)) as (url, asked):
        port = int(url.rpartition(":")[2])
        answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
        with pytest.raises(UrlRefused):
            fetch(f"http://images.example.com:{port}/x.jpg", Guard(ports=(port,)))
        assert asked == []
        assert fetch(f"http://images.example.com:{port}/x.jpg", AT_HOME._replace(ports=(port,))) == PHOTO


def test_an_image_is_fetched_without_cookies_and_without_compression() -> None:
    seen: dict[str, str | None] = {}

    def answer(handler: Handler) -> None:
        seen.update({name: handler.headers[name] for name in ("Accept-Encoding", "Cookie", "Via")})
        if handler.path == "/first":
            send(handler, b"", 302, headers={"Location": "second?x=1", "Set-Cookie": "a=b"})
        else:
            send(handler, PHOTO)

    with at(answer) as (url, guard, asked):
        assert fetch(f"{url}/first", guard) == PHOTO
        assert asked == ["/first", "/second?x=1"]
    assert seen == {"Accept-Encoding": "identity", "Cookie": None, "Via": f"1.1 {AGENT}"}


@pytest.mark.fault("S06")
@pytest.mark.parametrize(
    "target",
    ["http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "http://127.0.0.1:22/", "//10.1.1.1/"],
)
def test_a_redirect_inwards_is_refused(target: str) -> None:
    with at(lambda handler: send(handler, b"", 302, headers={"Location": target})) as (url, guard, _):
        with pytest.raises(UrlRefused):
            fetch(url, guard)


@pytest.mark.fault("S06")
def test_redirects_in_a_ring_end() -> None:
    with at(lambda handler: send(handler, b"", 307, headers={"Location": "/again"})) as (url, guard, asked):
        with pytest.raises(FetchFailed):
            fetch(url, guard)
        assert len(asked) == 11


@pytest.mark.fault("S13")
def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect on our behalf, and not look where."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with at(lambda handler: send(handler, PHOTO)) as (url, guard, asked):
        with serving(lambda handler: send(handler, b"of the proxy")) as (proxy, proxied):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            monkeypatch.setenv("http_proxy", proxy)
            assert fetch(f"{url}/x.jpg", guard) == PHOTO
    assert (asked, proxied) == (["/x.jpg"], [])


def chunks(handler: Handler, count: int) -> None:
    """So many times 100 kB without a length."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(count):
            handler.wfile.write(b"x" * 100_000)
    except OSError:
        pass  # the reader has had enough


@pytest.mark.fault("S08", "S09", "S10", "S11")
@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (lambda h: send(h, b"secret", 404), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b"secret", 500), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b"secret", 204), FetchFailed, "fetch-failed"),
        (lambda h: h.wfile.write(b"secret\r\n\r\n"), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b"short", length=10), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b"x", headers={"Content-Encoding": "br"}), FetchFailed, "fetch-failed"),
        (lambda h: send(h, b" <!doctype html>", headers={"Content-Type": "text/html; charset=utf-8"}),
         UnsupportedMedia, "not-an-image"),
        (lambda h: send(h, b"x" * 1_100_000), BadImage, "image-too-large"),
        (lambda h: chunks(h, 1_000), BadImage, "image-too-large"),
    ],
)  # fmt: skip
def test_a_wrong_answer_of_a_host_is_named_and_not_echoed(
    answer: Any, error: type[AppError], code: str
) -> None:
    with at(answer) as (url, guard, _):
        with pytest.raises(error) as caught:
            fetch(url, guard)
    assert getattr(caught.value, "code", "") == code
    assert "secret" not in str(caught.value)


@pytest.mark.fault("S08")
def test_hosts_that_are_not_there_are_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/", f"http://nowhere.invalid:{port}/"):
        with pytest.raises(FetchFailed):
            fetch(url, AT_HOME._replace(ports=(port,)))


@pytest.mark.fault("S09")
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\nsome"])
def test_a_host_that_falls_silent_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "TOTAL", 0.5)
    over = threading.Event()

    def answer(handler: Handler) -> None:
        handler.wfile.write(head)
        over.wait(SECONDS)

    with at(answer) as (url, guard, _):
        with pytest.raises(FetchTimeout) as caught:
            fetch(url, guard)
        over.set()
    assert (caught.value.status, caught.value.code) == (504, "fetch-timeout")


def test_a_link_may_come_in_any_form_and_a_file_goes_before_it(open_server: ServerProcess) -> None:
    address, link = f"{open_server.url}/analyze", "http://10.0.0.1/x.jpg"
    for sent in ({"data": {"url": link}}, {"files": {"url": (None, link)}}):
        assert_problem(requests.post(address, timeout=SECONDS, **sent), 422, "url-not-allowed")
    both = requests.post(address, data={"url": link}, files={"file": PHOTO}, timeout=SECONDS)
    assert both.json()["result"] == "teddys"
    assert_problem(requests.get(address, timeout=SECONDS), 400, "no-file")
    many = requests.post(address, data={"x": ["y"] * 99}, timeout=SECONDS)
    assert_problem(many, 400, "field-too-large")


@pytest.mark.fault("S12")
def test_a_server_that_is_asked_by_itself_asks_nobody(open_server: ServerProcess) -> None:
    headers = {"Via": f"1.1 proxy, 1.1 {AGENT}"}
    answer = requests.get(f"{open_server.url}/analyze?url=http://1.1.1.1/", headers=headers, timeout=SECONDS)
    assert_problem(answer, 422, "url-not-allowed")


def test_no_link_is_followed_unless_the_settings_say_so(bears: ServerProcess) -> None:
    address, link = f"{bears.url}/analyze", "http://10.0.0.1/x.jpg"
    assert_problem(requests.get(f"{address}?url={link}", timeout=SECONDS), 405, "method-not-allowed")
    assert_problem(requests.post(address, files={"url": (None, link)}, timeout=SECONDS), 400, "no-file")
    assert_problem(requests.post(address, data={"url": link}, timeout=SECONDS), 415, "unsupported-media-type")

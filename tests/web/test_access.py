"""ApiKeys, the session of the page, and the pace of each client."""

import re
from collections.abc import Callable

import pytest
import requests

from app.web.access import CLIENTS, SESSION_SECONDS, ApiKeys, RateLimiter
from tests.conftest import SECONDS, ServerProcess, bears_environment, image_bytes, run_app
from tests.http_client import assert_problem

PHOTO = image_bytes("a00_224x224.jpg")
KEY, OTHER = "a-key-of-someone-1", "a-key-of-another-2"
FILES = {"file": ("x.jpg", PHOTO)}


@pytest.fixture(scope="module")
def guarded(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    server = start_server(**bears_environment(APP_API_KEYS=f"{KEY},{OTHER}", APP_METRICS="false"))
    server.wait_for("ready after")
    return server


def test_a_program_needs_one_of_the_keys(guarded: ServerProcess) -> None:
    address = f"{guarded.url}/analyze"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"X-API-Key": KEY[:-1]}):
        refused = requests.post(address, files=FILES, headers=headers, timeout=SECONDS)
        assert_problem(refused, 401, "unauthorised")
        assert refused.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"X-API-Key": KEY},
    ):
        assert requests.post(address, files=FILES, headers=headers, timeout=SECONDS).status_code == 200
    assert_problem(requests.post(f"{guarded.url}/explain", files=FILES, timeout=SECONDS), 401, "unauthorised")
    assert KEY not in "".join(guarded.lines)


def test_the_page_works_without_a_key_through_its_session(guarded: ServerProcess) -> None:
    with requests.Session() as browser:
        page = browser.get(guarded.url, timeout=SECONDS)
        cookie = page.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie  # this is plain http
        assert browser.post(f"{guarded.url}/analyze", files=FILES, timeout=SECONDS).status_code == 200
        value = browser.cookies["session"]
        for own in (
            {"Origin": guarded.url},
            {"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"},
        ):
            asked = browser.post(f"{guarded.url}/analyze", files=FILES, headers=own, timeout=SECONDS)
            assert asked.status_code == 200
        for foreign in (
            {"Origin": "https://elsewhere.example"},
            {"Origin": "null"},
            {"Origin": guarded.url, "Sec-Fetch-Site": "cross-site"},
        ):
            refused = browser.post(f"{guarded.url}/analyze", files=FILES, headers=foreign, timeout=SECONDS)
            assert_problem(refused, 401, "unauthorised")
    for forged in (value[:-1], f"9{value}", "9999999999.", "", "é.x"):
        headers = {"Cookie": f"session={forged}".encode()}
        refused = requests.post(f"{guarded.url}/analyze", files=FILES, headers=headers, timeout=SECONDS)
        assert_problem(refused, 401, "unauthorised")


def test_behind_a_proxy_with_tls_the_session_is_for_https_alone(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(**bears_environment(APP_API_KEYS=KEY, APP_TRUSTED_PROXIES="127.0.0.1"))
    server.wait_for("ready after")
    for scheme, secure in (("https", True), ("http", False)):
        page = requests.get(server.url, headers={"X-Forwarded-Proto": scheme}, timeout=SECONDS)
        assert ("secure" in page.headers["set-cookie"].lower()) == secure


def test_without_keys_there_is_no_session(bears: ServerProcess) -> None:
    assert "set-cookie" not in requests.get(bears.url, timeout=SECONDS).headers


def test_the_counters_can_be_switched_off(guarded: ServerProcess) -> None:
    assert_problem(requests.get(f"{guarded.url}/metrics", timeout=SECONDS), 404, "not-found")


def test_a_session_ends_and_is_taken_by_every_process_with_the_same_keys() -> None:
    session = ApiKeys([KEY]).session(now=1000)
    assert ApiKeys([KEY]).verify_session(session, 1000 + SESSION_SECONDS - 1)
    assert not ApiKeys([KEY]).verify_session(session, 1000 + SESSION_SECONDS)
    assert not ApiKeys([OTHER]).verify_session(session, 1000)


def test_short_keys_and_nonsense_proxies_are_refused_at_the_start() -> None:
    for name, value in (("APP_API_KEYS", "short"), ("APP_TRUSTED_PROXIES", "*")):
        result = run_app("serve", "--port", "0", **bears_environment(**{name: value}))
        assert result.returncode == 1
        assert name.removeprefix("APP_").lower() in result.stderr.lower()


@pytest.mark.fault("L07")
def test_each_client_has_a_pace_and_x_forwarded_for_is_believed_from_trusted_proxies_alone(
    start_server: Callable[..., ServerProcess],
) -> None:
    def ask(server: ServerProcess, **headers: str) -> requests.Response:
        return requests.post(f"{server.url}/analyze", files=FILES, headers=headers, timeout=SECONDS)

    alone = start_server(**bears_environment(APP_RATE_LIMIT="3"))
    behind = start_server(**bears_environment(APP_RATE_LIMIT="1", APP_TRUSTED_PROXIES="127.0.0.0/8"))
    for server in (alone, behind):
        server.wait_for("ready after")
    answers = [ask(alone, **{"X-Forwarded-For": f"1.2.3.{n}"}) for n in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert_problem(answers[-1], 429, "rate-limited")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 20
    assert requests.get(f"{alone.url}/healthz", timeout=SECONDS).status_code == 200

    clients = (
        "1.2.3.4",
        "1.2.3.5",
        "6.6.6.6, 1.2.3.4",
        "2001:db8::1",
        "2001:db8::ffff",
        "garbage",
        "1.2.3.5",
    )
    statuses = [ask(behind, **{"X-Forwarded-For": client}).status_code for client in clients]
    assert statuses == [200, 200, 429, 200, 429, 200, 429]
    page = requests.get(behind.url, headers={"X-Forwarded-Proto": "https"}, timeout=SECONDS)
    assert page.status_code == 200


def test_the_request_id_of_a_trusted_proxy_is_kept_and_of_nobody_else(
    start_server: Callable[..., ServerProcess],
) -> None:
    def identity(server: ServerProcess, sent: str) -> str:
        return requests.get(server.url, headers={"X-Request-Id": sent}, timeout=SECONDS).headers[
            "x-request-id"
        ]

    behind = start_server(**bears_environment(APP_TRUSTED_PROXIES="127.0.0.1"))
    alone = start_server(**bears_environment(APP_TRUSTED_PROXIES="10.0.0.0/8"))
    assert identity(behind, "0af7651916cd43dd-8448.eb") == "0af7651916cd43dd-8448.eb"
    behind.wait_for("GET / 200 .* 0af7651916cd43dd-8448.eb")
    for sent in ("x y", "x" * 65, "a\u00e9", "<b>"):
        assert re.fullmatch("[0-9a-f]{16}", identity(behind, sent))
    assert re.fullmatch("[0-9a-f]{16}", identity(alone, "0af7651916cd43dd"))


def test_a_pace_fills_up_with_time_and_forgets_the_oldest() -> None:
    limiter = RateLimiter(60)
    assert [limiter.retry_after("a", 0.0) for _ in range(61)] == [0.0] * 60 + [1.0]
    assert limiter.retry_after("a", 0.5) == pytest.approx(0.5)
    assert limiter.retry_after("a", 1.5) == 0.0
    while not limiter.retry_after("a", 1.5):
        pass  # until it has to wait
    for number in range(CLIENTS):
        limiter.retry_after(str(number), 1.5)
    assert limiter.retry_after("a", 1.5) == 0.0
    assert [limiter.retry_after("a", 9000.0) for _ in range(61)] == [0.0] * 60 + [1.0]  # no more for waiting
    assert RateLimiter(0).retry_after("a", 0.0) == 0.0

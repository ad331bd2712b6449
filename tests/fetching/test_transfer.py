"""Transfers: to their end whatever the host does, or one sentence."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from app.errors import DownloadError, plain
from app.fetching.transfer import Limits, transfer
from tests.conftest import SECONDS
from tests.http_server import Answer, Handler, send, send_range, serving

CONTENT = bytes(range(256)) * 1024
HALF = len(CONTENT) // 2
QUICK = Limits(delay=0.001, longest_wait=0.3, stall=SECONDS, total=SECONDS)
TAG = {"ETag": '"one"'}
HALF_READ = threading.Event()


def get(url: str, path: Path, limits: Limits = QUICK) -> tuple[bytes, list[tuple[int, int | None]]]:
    """What arrived, and the progress that was reported."""
    seen: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        seen.append((done, total))
        if done >= HALF:
            HALF_READ.set()

    HALF_READ.clear()
    asyncio.run(transfer(f"{url}/file", path, progress, limits))
    return path.read_bytes(), seen


def in_turn(*answers: Answer) -> Answer:
    """Each answer once; the last for ever."""
    turns = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda handler: next(turns)(handler)


def cut(handler: Handler, headers: dict[str, str] = TAG) -> None:
    """Half of the file, and the connection breaks once that has been read."""
    send_range(handler, CONTENT, headers, HALF)
    HALF_READ.wait(SECONDS)


def whole(handler: Handler) -> None:
    send_range(handler, CONTENT, TAG)


def status(number: int, **headers: str) -> Answer:
    return lambda handler: send(
        handler, b"later", number, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


# --- what breaks off ----------------------------------------------------------------------------------------


@pytest.mark.fault("M06")
@pytest.mark.parametrize(
    ("headers", "resumed"),
    [
        (TAG, True),
        ({"Last-Modified": formatdate(1, usegmt=True)}, True),
        ({"ETag": 'W/"weak"', "Last-Modified": formatdate(1, usegmt=True)}, False),  # may be another file
        ({"Last-Modified": formatdate(2**32, usegmt=True)}, False),  # not older than the answer
        ({}, False),
    ],
)
def test_a_transfer_resumes_if_the_file_is_surely_the_same(
    tmp_path: Path, headers: dict[str, str], resumed: bool
) -> None:
    ranges = []

    def answer(handler: Handler) -> None:
        ranges.append((handler.headers["Range"], handler.headers["If-Range"]))
        if len(ranges) == 1:
            cut(handler, headers)
        else:
            send_range(handler, CONTENT, headers)

    with serving(answer) as (url, _):
        content, seen = get(url, tmp_path / "x")
    assert content == CONTENT
    rest = (f"bytes={HALF}-", next(iter(headers.values()), None))
    assert ranges == [(None, None), rest if resumed else (None, None)]
    assert (HALF, len(CONTENT)) in seen
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.fault("M06")
def test_a_host_that_always_breaks_off_is_given_up_after_five_tries(tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        send_range(handler, CONTENT, TAG, 1000)

    with (
        serving(answer) as (url, asked),
        pytest.raises(DownloadError, match=r"could not be read.*of 5 tries"),
    ):
        get(url, tmp_path / "x")
    assert len(asked) == 5


@pytest.mark.fault("M06")
def test_a_size_that_was_not_announced_is_checked_where_the_rest_tells_it(tmp_path: Path) -> None:
    def unannounced(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("ETag", TAG["ETag"])
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n" % (HALF, CONTENT[:HALF]))
        HALF_READ.wait(SECONDS)
        handler.close_connection = True

    with serving(in_turn(unannounced, cut, whole)) as (url, asked):
        content, seen = get(url, tmp_path / "x")
    assert content == CONTENT
    assert (HALF, None) in seen
    assert len(asked) == 2  # the first rest was the whole rest


@pytest.mark.fault("M07")
def test_a_host_that_ignores_the_range_sends_the_file_again(tmp_path: Path) -> None:
    with serving(in_turn(cut, lambda handler: send(handler, CONTENT))) as (url, _):
        assert get(url, tmp_path / "x")[0] == CONTENT


@pytest.mark.fault("M08")
def test_nothing_stays_of_a_longer_file_that_became_a_shorter_one(tmp_path: Path) -> None:
    with serving(in_turn(cut, lambda handler: send(handler, CONTENT[:100]))) as (url, _):
        assert get(url, tmp_path / "x")[0] == CONTENT[:100]


OTHER = CONTENT[::-1]


def rest_of(content: bytes, where: str, tag: str) -> Answer:
    """A rest that is sent whatever If-Range says."""
    headers = {"ETag": tag, "Content-Range": where}
    return lambda handler: send(handler, content[HALF:], 206, headers=headers)


@pytest.mark.fault("M08")
@pytest.mark.parametrize(
    "second",
    [
        lambda handler: send_range(handler, OTHER, {"ETag": '"two"'}),  # If-Range does not hold: 200
        rest_of(OTHER, f"bytes {HALF}-{len(OTHER) - 1}/{len(OTHER)}", '"two"'),
        rest_of(OTHER, f"bytes {HALF}-{len(OTHER) - 1}/{len(OTHER) + 1}", '"one"'),
        rest_of(OTHER, f"bytes 0-{len(OTHER) - 1}/{len(OTHER)}", '"one"'),
        rest_of(OTHER, "half of it", '"one"'),
        status(416),
    ],
)
def test_a_file_that_changes_between_two_pieces_is_begun_again(tmp_path: Path, second: Answer) -> None:
    def changed(handler: Handler) -> None:
        send_range(handler, OTHER, {"ETag": '"two"'})

    with serving(in_turn(cut, second, changed)) as (url, _):
        assert get(url, tmp_path / "x")[0] == OTHER


# --- what may pass, and what will not -----------------------------------------------------------------------


@pytest.mark.fault("M09")
@pytest.mark.parametrize("numbers", [(503, 429, 500, 502), (504, 408, 425)])
def test_a_temporary_failure_is_retried(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with serving(in_turn(*map(status, numbers), whole)) as (url, asked):
        assert get(url, tmp_path / "x")[0] == CONTENT
    assert len(asked) == len(numbers) + 1


@pytest.mark.fault("M09")
@pytest.mark.parametrize("wait", ["3600", lambda: formatdate(time.time() + 3600, usegmt=True)])
def test_a_host_is_asked_again_when_it_says_but_within_reason(
    tmp_path: Path, wait: str | Callable[[], str]
) -> None:
    times = []

    def answer(handler: Handler) -> None:
        times.append(time.monotonic())
        later = wait if isinstance(wait, str) else wait()
        (status(503, Retry_After=later) if len(times) == 1 else whole)(handler)

    with serving(answer) as (url, _):
        assert get(url, tmp_path / "x")[0] == CONTENT
    assert times[1] - times[0] >= QUICK.longest_wait


def test_a_retry_after_that_is_no_time_is_ignored(tmp_path: Path) -> None:
    with serving(in_turn(status(503, Retry_After="soon"), whole)) as (url, _):
        assert get(url, tmp_path / "x")[0] == CONTENT


@pytest.mark.fault("M01")
@pytest.mark.parametrize("number", [401, 403, 404, 410, 300, 206])
def test_an_answer_that_will_not_change_is_said_at_once(tmp_path: Path, number: int) -> None:
    expected = rf"127\.0\.0\.1:\d+ answered {number} .*without signing in"
    with serving(status(number)) as (url, asked), pytest.raises(DownloadError, match=expected):
        get(url, tmp_path / "x")
    assert len(asked) == 1


def test_a_host_that_nobody_answers_at_is_named(tmp_path: Path) -> None:
    with serving(whole) as (url, _):
        pass  # the port is closed again
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ could not be read .*the last of 5 tries"):
        get(url, tmp_path / "x")


def test_what_is_no_http_is_named(tmp_path: Path) -> None:
    def nonsense(handler: Handler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    with serving(nonsense) as (url, asked), pytest.raises(DownloadError, match="could not be read"):
        get(url, tmp_path / "x")
    assert len(asked) == 1


def test_a_name_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"xx\.example could not be read"):
        get(f"http://{'x' * 64}xx.example", tmp_path / "x")


@pytest.mark.fault("M32")
def test_the_phrase_of_a_host_is_shown_on_one_line(tmp_path: Path) -> None:
    def hostile(handler: Handler) -> None:
        handler.wfile.write(
            b"HTTP/1.1 404 \x1b[2J\xe2\x80\xae" + b"x" * 2000 + b"\r\nContent-Length: 0\r\n\r\n"
        )

    with serving(hostile) as (url, _), pytest.raises(DownloadError) as refused:
        get(url, tmp_path / "x")
    message = str(refused.value)
    assert message == plain(message, 600)
    assert "answered 404 [2Jx" in message


def test_a_compressed_answer_is_refused(tmp_path: Path) -> None:
    def packed(handler: Handler) -> None:
        assert handler.headers["Accept-Encoding"] == "identity"
        send(handler, CONTENT, headers={"Content-Encoding": "gzip"})

    with serving(packed) as (url, _), pytest.raises(DownloadError, match="compressed against the request"):
        get(url, tmp_path / "x")


# --- redirects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(tmp_path: Path, number: int) -> None:
    with serving(in_turn(status(number, Location="/new?a=b%20c"), whole)) as (url, asked):
        assert get(url, tmp_path / "x")[0] == CONTENT
    assert asked == ["/file", "/new?a=b%20c"]


@pytest.mark.fault("M10")
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/file", "redirects more than 10 times"),
        ("ftp://127.0.0.1/file", "redirects from http to ftp"),
        ("http://[::1", r"redirects to http://\[::1, which is not a link"),
    ],
)
def test_redirects_that_lead_nowhere_are_named(tmp_path: Path, location: str, message: str) -> None:
    with serving(status(302, Location=location)) as (url, asked), pytest.raises(DownloadError, match=message):
        get(url, tmp_path / "x")
    assert len(asked) <= 11


# --- deadlines and sizes ------------------------------------------------------------------------------------


@pytest.mark.fault("M11")
def test_a_host_that_stalls_is_asked_for_the_rest_and_then_given_up(tmp_path: Path) -> None:
    over = threading.Event()

    def stall(handler: Handler) -> None:
        send_range(handler, CONTENT, TAG, 1000)
        over.wait(SECONDS)

    limits = Limits(delay=0.001, stall=0.4, total=20)
    with serving(in_turn(stall, whole)) as (url, _):
        assert get(url, tmp_path / "x", limits)[0] == CONTENT
        over.set()
    over.clear()
    with serving(stall) as (url, asked):
        with pytest.raises(DownloadError, match=r"sent nothing for 0 s, the last of 5 tries"):
            get(url, tmp_path / "y", limits)
        over.set()
    assert len(asked) == 5
    assert CONTENT.startswith((tmp_path / "y").read_bytes())


@pytest.mark.fault("M11")
def test_a_slow_host_is_given_up_in_the_end(tmp_path: Path) -> None:
    over = threading.Event()

    def trickle(handler: Handler) -> None:
        send(handler, CONTENT[:600], length=len(CONTENT))
        while not over.wait(0.02):
            handler.wfile.write(b"x")

    with serving(trickle) as (url, _):
        with pytest.raises(DownloadError, match=r"sent \d+ bytes within 0 s, and that is not all"):
            get(url, tmp_path / "x", Limits(total=0.4))
        over.set()


@pytest.mark.fault("M15")
def test_a_file_that_is_too_large_is_refused_before_it_is_read_or_where_it_passes_the_limit(
    tmp_path: Path,
) -> None:
    over = threading.Event()

    def announced(handler: Handler) -> None:
        send(handler, CONTENT[:600], length=2_000_000)
        over.wait(SECONDS)

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not over.is_set():
            handler.wfile.write(CONTENT)

    for number, answer in enumerate((announced, endless)):
        with serving(answer) as (url, asked):
            with pytest.raises(DownloadError, match="over 1,000,000 bytes"):
                get(url, tmp_path / str(number), Limits(size=1_000_000))
            over.set()
        over.clear()
        assert len(asked) == 1
        assert (tmp_path / str(number)).stat().st_size <= 1_000_000

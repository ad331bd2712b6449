"""Downloads: whole, checked and kept, or not at all."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from app import download
from app.checkpoint import check_signature
from app.download import cache_path, fetch
from app.errors import CheckpointError, ChecksumMismatch, DownloadError
from tests.conftest import V1_CHECKPOINT
from tests.http_server import Handler, send, serving

CONTENT = V1_CHECKPOINT.read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def get(
    location: str, folder: Path, sha256: str = "", seen: list[tuple[int, int | None]] | None = None
) -> Path:
    def progress(done: int, total: int | None) -> None:
        if seen is not None:
            seen.append((done, total))

    fetched = asyncio.run(fetch(location, folder, sha256=sha256, verify=check_signature, progress=progress))
    return fetched.path


def whole(handler: Handler) -> None:
    send(handler, CONTENT)


def test_a_link_is_downloaded_once_and_then_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(whole) as (url, asked):
        first = get(f"{url}/stage-2.pth", tmp_path, SHA256, seen)
        second = get(f"{url}/stage-2.pth", tmp_path, SHA256)
    assert first == second == cache_path(f"{url}/stage-2.pth", tmp_path)
    assert first.read_bytes() == CONTENT
    assert asked == ["/stage-2.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(tmp_path.iterdir()) == [first]


def test_another_link_is_another_file(tmp_path: Path) -> None:
    with serving(whole) as (url, asked):
        assert get(f"{url}/a.pth?dl=1", tmp_path) != get(f"{url}/b.pth", tmp_path)
    assert len(asked) == 2


def test_a_redirect_is_followed(tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        if handler.path == "/old":
            send(handler, b"", 302, headers={"Location": "/new"})
        else:
            whole(handler)

    with serving(answer) as (url, asked):
        assert get(f"{url}/old", tmp_path).read_bytes() == CONTENT
    assert asked == ["/old", "/new"]


def test_a_path_is_used_where_it_is(tmp_path: Path) -> None:
    assert get(str(V1_CHECKPOINT), tmp_path, SHA256) == V1_CHECKPOINT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda h: send(h, b"gone", 404), DownloadError, "answered 404 Not Found.*without signing in"),
        (lambda h: send(h, b"no", 403), DownloadError, "answered 403"),
        (lambda h: send(h, CONTENT[:999], length=len(CONTENT)), DownloadError, "could not be read"),
        (lambda h: send(h, b"", 302, headers={"Location": "/again"}), DownloadError, "TooManyRedirects"),
        (lambda h: send(h, b"<!DOCTYPE html><title>Google Drive"), CheckpointError, "is a web page"),
        (lambda h: send(h, b""), CheckpointError, "is empty"),
    ],
)
def test_what_is_not_the_file_is_refused_and_never_kept(
    tmp_path: Path, answer: object, error: type[Exception], message: str
) -> None:
    with serving(answer) as (url, _), pytest.raises(error, match=message):  # type: ignore[arg-type]
        get(f"{url}/stage-2.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sha256_is_refused_and_not_kept(tmp_path: Path) -> None:
    with serving(whole) as (url, _), pytest.raises(ChecksumMismatch, match=f"has the sha256 {SHA256}, but"):
        get(f"{url}/stage-2.pth", tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sha256_is_refused_for_a_path_and_for_a_kept_file(tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch):
        get(str(V1_CHECKPOINT), tmp_path, "0" * 64)
    with serving(whole) as (url, asked):
        get(f"{url}/stage-2.pth", tmp_path)
        with pytest.raises(ChecksumMismatch):
            get(f"{url}/stage-2.pth", tmp_path, "0" * 64)
        assert len(asked) == 2  # the kept file might have been an old one


def test_a_kept_file_that_is_damaged_is_downloaded_again(tmp_path: Path) -> None:
    with serving(whole) as (url, asked):
        kept = get(f"{url}/stage-2.pth", tmp_path)
        kept.write_bytes(b"<html>")
        assert get(f"{url}/stage-2.pth", tmp_path).read_bytes() == CONTENT
    assert len(asked) == 2


def test_a_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL", 0.2)
    with (
        serving(lambda h: h.rfile.read(1)) as (url, _),
        pytest.raises(DownloadError, match="sent nothing for"),
    ):
        get(f"{url}/stage-2.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_file_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 1_000_000)
    with serving(whole) as (url, _), pytest.raises(DownloadError, match="over 1,000,000 bytes"):
        get(f"{url}/stage-2.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_nobody_answers_at_is_named(tmp_path: Path) -> None:
    with serving(whole) as (url, _):
        pass  # the port is closed again
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ could not be read"):
        get(f"{url}/stage-2.pth", tmp_path)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/nowhere/stage-2.pth", "does not exist"),
        (str(V1_CHECKPOINT.parent), "is a folder"),
        ("http://", "no valid link"),
        ("https://[bad/x.pth", "no valid link"),
    ],
)
def test_a_place_without_a_file_is_named(tmp_path: Path, location: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        get(location, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(whole) as (url, _), pytest.raises(DownloadError, match=r"cannot be kept in .*: File exists"):
        get(f"{url}/stage-2.pth", tmp_path / "file")


def test_two_downloads_at_once_both_get_the_whole_file(tmp_path: Path) -> None:
    async def both(url: str) -> list[Path]:
        one = fetch(url, tmp_path, verify=check_signature, progress=lambda done, total: None)
        other = fetch(url, tmp_path, verify=check_signature, progress=lambda done, total: None)
        return [fetched.path for fetched in await asyncio.gather(one, other)]

    with serving(whole) as (url, asked):
        paths = asyncio.run(both(f"{url}/stage-2.pth"))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == CONTENT
    assert len(asked) == 2
    assert list(tmp_path.iterdir()) == [paths[0]]

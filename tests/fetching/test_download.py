"""Downloads: whole, checked and kept, or not at all."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.checkpoints.containers import check_signature
from app.errors import CheckpointError, ChecksumMismatch, DownloadError
from app.fetching.download import LEFTOVER, cache_path, fetch
from app.fetching.transfer import Limits
from app.settings import MODELS
from tests.conftest import ROOT, SECONDS, V1_CHECKPOINT, ServerProcess, bears_environment
from tests.http_server import Answer, Handler, send, serving

CONTENT = V1_CHECKPOINT.read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, a new one for each test."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def get(
    location: str, folder: Path, sha256: str = "", seen: list[tuple[int, int | None]] | None = None
) -> Path:
    def progress(done: int, total: int | None) -> None:
        if seen is not None:
            seen.append((done, total))

    task = fetch(
        location,
        folder,
        sha256=sha256,
        verify=check_signature,
        progress=progress,
        limits=Limits(delay=0.001, stall=SECONDS, total=SECONDS),
    )
    return asyncio.run(task).path


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


def test_a_path_is_used_where_it_is(tmp_path: Path) -> None:
    assert get(str(V1_CHECKPOINT), tmp_path, SHA256) == V1_CHECKPOINT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("M02", "M03", "M17")
@pytest.mark.parametrize(
    ("body", "kind", "error", "message"),
    [
        (b"<!DOCTYPE html><title>Google Drive", "text/html", DownloadError, "a web page ..Google Drive"),
        (b"<!DOCTYPE html><title>Google Drive", "application/octet-stream", CheckpointError, "a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "text/plain",
            CheckpointError,
            "a git-lfs pointer",
        ),
        (b"<?xml version='1.0'?><Error>", "application/xml", CheckpointError, "an XML answer"),
        (b'{"error": "not found"}', "application/json", CheckpointError, "a JSON text"),
        (b"", "application/octet-stream", CheckpointError, "is empty"),
        (b"\0" * 4096, "application/octet-stream", CheckpointError, "full of zeros"),
    ],
)
def test_another_answer_than_the_file_is_named_and_never_kept(
    tmp_path: Path, body: bytes, kind: str, error: type[Exception], message: str
) -> None:
    def answer(handler: Handler) -> None:
        send(handler, body, headers={"Content-Type": kind})

    with serving(answer) as (url, asked), pytest.raises(error, match=message):
        get(f"{url}/stage-2.pth", tmp_path)
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed by Linux alone")
def test_a_large_file_that_is_none_is_closed_when_that_is_said(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with page.open("wb") as file:
        file.write(b"<!doctype html>")
        file.truncate(300_000_000)  # its sha256 takes a while
    with pytest.raises(CheckpointError):
        get(str(page), tmp_path)
    assert str(page) not in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("answer", [lambda h: send(h, b"gone", 404), lambda h: send(h, b"", length=999)])
def test_nothing_stays_of_a_download_that_fails(tmp_path: Path, answer: Answer) -> None:
    with serving(answer) as (url, _), pytest.raises(DownloadError):
        get(f"{url}/stage-2.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("M05")
def test_a_wrong_sha256_is_refused_and_not_kept(tmp_path: Path) -> None:
    with serving(whole) as (url, _), pytest.raises(ChecksumMismatch, match=f"has the sha256 {SHA256}, but"):
        get(f"{url}/stage-2.pth", tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("M05")
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


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/nowhere/stage-2.pth", "does not exist"),
        (str(V1_CHECKPOINT.parent), "is a folder"),
        ("http://", "not a valid link"),
        ("https://[bad/x.pth", "not a valid link"),
    ],
)
def test_a_place_without_a_file_is_named(tmp_path: Path, location: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        get(location, tmp_path)


# --- the disk -----------------------------------------------------------------------------------------------


def unwritable(folder: Path) -> Path:
    """A folder that cannot be made, not even by root: a file is in its way."""
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("")
    return folder / "file" / "models"


@pytest.mark.fault("M12")
def test_a_download_that_its_folder_refuses_is_kept_among_the_temporary_files(
    tmp_path: Path, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = unwritable(tmp_path)
    with serving(whole) as (url, asked):
        first = get(f"{url}/stage-2.pth", folder)
        assert get(f"{url}/stage-2.pth", folder) == first
    assert len(asked) == 1  # it is found there again
    assert first.read_bytes() == CONTENT
    assert first.parent.parent == temporary
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert "cannot be kept where it should be: Not a directory" in caplog.text
    assert f"is kept in {first.parent}, for as long as temporary files are kept" in caplog.text


@pytest.mark.fault("M12")
def test_a_download_without_any_folder_is_one_sentence(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(unwritable(temporary)))
    expected = r"can be kept nowhere: not in .*models \(Not a directory\), .* \(Not a directory\)\. Make room"
    with serving(whole) as (url, asked), pytest.raises(DownloadError, match=expected):
        get(f"{url}/stage-2.pth", unwritable(tmp_path))
    assert asked == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_a_temporary_folder_of_somebody_else_is_not_trusted(tmp_path: Path, temporary: Path) -> None:
    planted = temporary / "fastai-now-0"
    planted.mkdir()
    os.chown(planted, 12345, 12345)
    with serving(whole) as (url, _), pytest.raises(DownloadError, match="belongs to somebody else"):
        get(f"{url}/stage-2.pth", unwritable(tmp_path))
    assert list(planted.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which has no room for the file."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.fault("M12")
@pytest.mark.parametrize("announced", [True, False])
def test_a_full_disk_is_named_and_what_is_there_does_not_stay(
    small_disk: Path, temporary: Path, caplog: pytest.LogCaptureFixture, announced: bool
) -> None:
    def answer(handler: Handler) -> None:
        if announced:
            send(handler, CONTENT)
        else:
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(ConnectionError):
                handler.wfile.write(CONTENT)

    with serving(answer) as (url, _):
        path = get(f"{url}/stage-2.pth", small_disk)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(temporary)
    assert list(small_disk.iterdir()) == []
    expected = r"262,144 bytes are free, the file has [\d,]+" if announced else "No space left on device"
    assert re.search(expected, caplog.text)


@pytest.mark.fault("M12")
def test_a_read_only_disk_that_has_the_file_already_is_enough(small_disk: Path, temporary: Path) -> None:
    small = CONTENT[:1000]
    with serving(lambda handler: send(handler, small)) as (url, asked):
        kept = get(f"{url}/small", small_disk)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert get(f"{url}/small", small_disk) == kept
        assert len(asked) == 1
        assert get(f"{url}/other", small_disk).is_relative_to(temporary)


# --- several processes, and killed ones ---------------------------------------------------------------------


@pytest.mark.fault("M13")
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


@pytest.mark.fault("M13")
def test_two_processes_at_once_on_one_folder_both_get_the_whole_file(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=SECONDS)

    def together(handler: Handler) -> None:
        both.wait()  # both are in the middle of it
        send(handler, CONTENT)

    with serving(together) as (url, asked):
        command = [sys.executable, "-m", "tests.everywhere", url.rpartition(":")[2], str(tmp_path)]
        processes = [
            subprocess.Popen([*command, "http://host.example/x.pth"], cwd=ROOT, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [json.loads(output) for output in outputs] == [{"sha256": SHA256}] * 2
    assert len(asked) == 2
    assert list(tmp_path.iterdir()) == [cache_path("http://host.example/x.pth", tmp_path)]


@pytest.mark.fault("M14")
def test_the_rest_of_killed_downloads_is_swept_but_not_the_files_of_others(tmp_path: Path) -> None:
    old, new = (tmp_path / f"{name}.download.1.abcd.part" for name in ("old", "new"))
    other = tmp_path / "stage-2.pth"
    for path in (old, new, other):
        path.write_bytes(CONTENT[:999])
    for path in (old, other):
        os.utime(path, (time.time() - LEFTOVER - 1,) * 2)
    with serving(whole) as (url, _):
        kept = get(f"{url}/stage-2.pth", tmp_path)
    assert set(tmp_path.iterdir()) == {new, other, kept}


def test_a_silent_download_is_still_younger_than_what_is_swept() -> None:
    limits = Limits()
    backoff = limits.delay * 2 ** (limits.tries - 2)
    assert LEFTOVER > limits.stall + max(limits.longest_wait, backoff) + limits.stall


@pytest.mark.fault("M14")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_in_the_middle_of_a_download_starts_again(
    start_server: Callable[..., ServerProcess], end: signal.Signals
) -> None:
    begun, over = threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        if over.is_set():
            send(handler, CONTENT)
        else:
            send(handler, CONTENT[: len(CONTENT) // 2], length=len(CONTENT))
            begun.set()
            over.wait(SECONDS)

    with serving(answer) as (url, _):
        kept = cache_path(f"{url}/stage-2.pth", MODELS)
        try:
            server = start_server(**bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth"))
            server.wait_for("downloading")
            assert begun.wait(SECONDS)
            server.process.send_signal(end)
            server.process.wait(SECONDS)
            over.set()
            assert not kept.exists()
            leftovers = list(MODELS.glob(f"{kept.name}.*.part"))
            assert len(leftovers) == (1 if end == signal.SIGKILL else 0)
            server = start_server(**bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth"))
            server.wait_for("ready after")
            assert kept.read_bytes() == CONTENT
        finally:
            for path in MODELS.glob(f"{kept.name}*"):
                path.unlink()

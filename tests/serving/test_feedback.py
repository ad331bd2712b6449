"""The folder of photos that visitors gave: what is kept, how much, and for how long."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands.check import labeled_photos
from app.errors import FeedbackFull, SettingsError
from app.serving import feedback
from app.serving.feedback import DAY, FeedbackAddress, FeedbackFolder, open_feedback
from app.settings import Settings
from tests.conftest import BEARS, image_bytes

PHOTO = image_bytes("a05_640x480.jpg")


def give(folder: FeedbackFolder, label: str = BEARS[0], photo: bytes = PHOTO) -> str:
    return asyncio.run(folder.give(label, photo))


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_photos_are_kept_in_the_folders_that_check_and_fastai_read(tmp_path: Path, vision: object) -> None:
    folder = FeedbackFolder(tmp_path / "new", BEARS, 1)
    keys = [give(folder, label) for label in (*BEARS, BEARS[1])]
    found = [(path.stem, BEARS[truth]) for path, truth in labeled_photos(tmp_path / "new", BEARS)]
    assert sorted(found) == sorted(zip(keys, (*BEARS, BEARS[1]), strict=True))
    items = vision.get_image_files(tmp_path / "new")  # type: ignore[attr-defined]
    assert sorted((path.stem, vision.parent_label(path)) for path in items) == sorted(found)  # type: ignore[attr-defined]
    assert {path.read_bytes() for path in kept(tmp_path)} == {PHOTO}


def test_a_photo_is_withdrawn_by_its_key_alone(tmp_path: Path) -> None:
    folder = FeedbackFolder(tmp_path, BEARS, 1)
    (tmp_path / BEARS[0]).mkdir()
    (tmp_path / BEARS[0] / "own.jpg").write_bytes(PHOTO)
    key, other = give(folder), give(folder)
    for wrong in ("", "own", "own.jpg", f"../{BEARS[0]}/{key}", key[:-1], key.upper() + "x", "f" * 32):
        assert not asyncio.run(folder.withdraw(wrong))
    assert asyncio.run(folder.withdraw(key))
    assert not asyncio.run(folder.withdraw(key))
    assert {path.stem for path in kept(tmp_path)} == {other, "own"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_FEEDBACK", 3), ("MAX_BYTES", 3 * len(PHOTO) + 5)])
def test_the_folder_is_bounded(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, limit, value)
    folder = FeedbackFolder(tmp_path, BEARS, 1)
    keys = [give(folder, label) for label in BEARS]
    with pytest.raises(FeedbackFull):
        give(folder)
    assert len(kept(tmp_path)) == 3
    asyncio.run(folder.withdraw(keys[0]))
    assert give(folder)


def test_photos_are_deleted_after_their_days_and_the_owner_s_files_never(tmp_path: Path) -> None:
    folder = FeedbackFolder(tmp_path, BEARS, 2)
    (tmp_path / BEARS[0]).mkdir()
    own = tmp_path / BEARS[0] / "own.jpg"
    own.write_bytes(PHOTO)
    old, new = give(folder), give(folder)
    left = tmp_path / BEARS[0] / f".{'a' * 32}"  # of a server that was killed while it wrote
    left.write_bytes(PHOTO)
    ages = {own: 9, left: 3, tmp_path / BEARS[0] / f"{old}.jpg": 3, tmp_path / BEARS[0] / f"{new}.jpg": 1}
    for path, days in ages.items():
        os.utime(path, (time.time() - days * DAY,) * 2)
    asyncio.run(folder.sweep())
    assert {path.stem for path in kept(tmp_path)} == {"own", new}


def test_a_full_disk_is_no_more_room(tmp_path: Path) -> None:
    folder = FeedbackFolder(tmp_path, BEARS, 1)
    (tmp_path / BEARS[0]).write_bytes(b"a file where a folder should be")
    with pytest.raises(FeedbackFull):
        give(folder)


@given(name=st.text(min_size=1))
def test_the_name_of_a_class_is_one_name_of_a_folder_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("any")
    try:
        folder = FeedbackFolder(base / "in", (name,), 1)
    except SettingsError:
        return
    give(folder, name)
    (photo,) = kept(base)
    assert photo.parent.parent == base / "in"


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", ".hidden", "a\\b", "con", "NUL.x", "a\0b", "a ", "\udcff", "x" * 201]
)
def test_a_class_that_cannot_be_a_folder_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a folder"):
        FeedbackFolder(tmp_path, ("bear", name), 1)
    assert not kept(tmp_path)


def test_a_folder_that_cannot_be_written_or_that_is_served_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="where no file can be written"):
        FeedbackFolder(tmp_path / "file" / "in", BEARS, 1)
    with pytest.raises(SettingsError, match="everybody can load"):
        FeedbackFolder(feedback.SERVED / "static" / "x", BEARS, 1)
    assert not (feedback.SERVED / "static" / "x").exists()


def test_feedback_is_off_unless_it_is_set(tmp_path: Path) -> None:
    settings = {"model_url": "x", "classes": BEARS}
    assert open_feedback(Settings(**settings), BEARS) is None  # type: ignore[arg-type]
    for value, kind in {"https://example.com/x": FeedbackAddress, str(tmp_path): FeedbackFolder}.items():
        opened = open_feedback(Settings(**settings, feedback=value), BEARS)  # type: ignore[arg-type]
        assert isinstance(opened, kind)

"""Photos on threads: how many pixels at once, in which order, and for how long."""

import asyncio
import gc
import math
import threading
import time

import numpy as np
import pytest
from PIL import Image, _imaging

from app.errors import BadImage, Unavailable
from app.photos.decode import decode
from app.photos.pool import Decoder, Room
from app.types import Size
from tests.conftest import SECONDS, image_bytes, named

PHOTO = image_bytes("b00_12mp_4000x3000.jpg")


def applied(
    decoder: Decoder, data: bytes, deadline: float = math.inf, least: Size | None = None
) -> Image.Image:
    try:
        return asyncio.run(decoder.apply(lambda image: image, data, deadline, least=least))
    finally:
        decoder.close()


def test_a_photo_is_decoded_as_without_threads() -> None:
    image = applied(Decoder(), PHOTO)
    assert np.array_equal(np.asarray(image), np.asarray(decode(PHOTO)))


def test_what_is_no_picture_is_refused_as_without_threads() -> None:
    with pytest.raises(BadImage):
        applied(Decoder(), PHOTO[: len(PHOTO) // 2])


@pytest.mark.fault("L03")
def test_a_photo_whose_turn_comes_too_late_is_not_decoded() -> None:
    with pytest.raises(Unavailable) as caught:
        applied(Decoder(), b"no picture at all", time.monotonic())
    assert caught.value.code == "queue-timeout"


def test_a_large_jpeg_is_decoded_reduced_where_that_is_allowed_and_looks_the_same() -> None:
    preprocess = named()
    image = applied(Decoder(), PHOTO, least=preprocess.least)
    assert image.size == (2000, 1500)  # 1000 x 750 would be less than four times 224
    assert np.abs(preprocess(image) - preprocess(decode(PHOTO))).max() < 3 * (1 / 255 / 0.224)
    small = applied(Decoder(), image_bytes("a14_1000x1000.jpg"), least=preprocess.least)
    assert small.size == (1000, 1000)


def kept() -> int:
    """Blocks of memory, 16 MB each, that Pillow keeps for its next pictures."""
    return _imaging.get_stats()["blocks_cached"]  # type: ignore[no-any-return]


def test_memory_is_kept_for_the_next_large_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.photos.pool.KEPT_SECONDS", SECONDS)
    decoder = Decoder()

    async def decoded_twice() -> None:
        await decoder.apply(lambda image: None, PHOTO, math.inf)
        assert kept() == 3  # 4000 x 3000 pixels of 4 bytes
        reused = _imaging.get_stats()["reused_blocks"]
        await decoder.apply(lambda image: None, PHOTO, math.inf)
        assert _imaging.get_stats()["reused_blocks"] == reused + 3

    gc.collect()  # pictures of other tests in circles, whose blocks would be kept too
    _imaging.clear_cache()
    asyncio.run(decoded_twice())
    decoder.close()
    assert kept() == 0


def test_memory_is_given_back_after_a_photo_however_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.photos.pool.KEPT_SECONDS", 0.0)  # far less than the photo takes

    async def decoded() -> None:
        decoder = Decoder()
        await decoder.apply(lambda image: None, PHOTO, math.inf)
        async with asyncio.timeout(SECONDS):
            while kept():
                await asyncio.sleep(0)
        decoder.close()

    asyncio.run(decoded())


def test_two_large_pictures_are_not_held_at_once() -> None:
    room, inside, most = Room(10), threading.Semaphore(0), []
    go, held = threading.Event(), 0

    def work(pixels: int) -> None:
        nonlocal held
        with room.take(pixels):
            held += pixels
            most.append(held)
            inside.release()
            assert go.wait(SECONDS)
            held -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (6, 6, 50, 3)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=SECONDS)
    go.set()
    for thread in threads:
        thread.join(SECONDS)
    assert len(most) == 4
    assert all(total <= 10 or total == 50 for total in most)


def test_a_small_picture_does_not_overtake_a_large_one_that_waits() -> None:
    room, entered = Room(10), list[int]()
    deadline = time.monotonic() + SECONDS

    def work(pixels: int) -> None:
        with room.take(pixels):
            entered.append(pixels)

    large, small = (threading.Thread(target=work, args=(pixels,)) for pixels in (9, 3))
    with room.take(6):
        large.start()
        while not room._turn.locked() and time.monotonic() < deadline:
            time.sleep(0)  # until the large one waits
        small.start()
        small.join(0.2)
        assert entered == []  # there is room for 3, but it is not its turn
    for thread in (large, small):
        thread.join(SECONDS)
    assert entered == [9, 3]

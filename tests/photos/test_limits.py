"""What one picture may cost: files that are small and take minutes, against the clock."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import BadImage
from app.photos import limits
from app.photos.decode import decode
from tests.conftest import ServerProcess, image_bytes
from tests.http_client import assert_problem


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def progressive(side: int, passes: int) -> bytes:
    """A gray JPEG that goes over its pixels so many times more than it needs."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * passes + data[-2:]


def run_length_bmp(width: int, height: int) -> bytes:
    """Two pixels a row and the end of the row: Pillow fills it up byte by byte."""
    rows = b"\x01\x01\0\0" * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + head + bytes(1024) + rows


def png_of_chunks(count: int) -> bytes:
    chunk = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    return data[:33] + chunk * count + data[33:]


@pytest.mark.fault("U26")
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_jpeg_of_a_thousand_passes_is_refused_before_it_is_decoded(kind: str) -> None:
    data = progressive(7000, 1000)
    if kind == "TIFF":
        flat = Image.new("L", (7000, 7000))
        # one strip, so that its JPEG can be replaced by one of many passes
        tiff = encoded(flat, "TIFF", compression="jpeg", tiffinfo={278: 7000})
        data = tiff + data
    start = time.thread_time()
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.code == "image-too-large"
    assert time.thread_time() - start < 1


def test_what_follows_a_jpeg_does_not_count_as_passes() -> None:
    """Phones append a film, in which any two bytes occur."""
    film = np.random.default_rng(0).integers(0, 256, 9_000_000, np.uint8).tobytes()
    photo = encoded(Image.new("RGB", (3000, 4000)), "JPEG", progressive=True)
    assert decode(photo + b"\xff\xda\0\2" * 1000 + film).size == (3000, 4000)


def test_what_a_segment_of_a_jpeg_holds_does_not_count_as_passes() -> None:
    """A preview is a JPEG within a segment."""
    photo = encoded(Image.new("RGB", (3000, 4000)), "JPEG", comment=b"\xff\xda\0\2" * 1000)
    assert decode(photo).size == (3000, 4000)


@pytest.mark.fault("U26")
@pytest.mark.parametrize("data", [run_length_bmp(20_000, 2_500), png_of_chunks(800_000)], ids=["BMP", "PNG"])
def test_a_picture_that_takes_too_much_cpu_time_is_given_up(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CPU_SECONDS", 0.3)
    start = time.thread_time()
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.code == "image-too-large"
    assert time.thread_time() - start < 2


def test_libtiff_does_not_write_into_the_log(bears: ServerProcess) -> None:
    bad = bytearray(encoded(Image.new("1", (200, 200)), "TIFF", compression="group4"))
    bad[8:60] = b"\xaa" * 52
    refused = bears.post(bytes(bad))
    assert refused.status_code in (415, 422)
    identity = refused.headers["x-request-id"]
    damaged = encoded(Image.open(io.BytesIO(image_bytes("a00_224x224.jpg"))), "TIFF", compression="tiff_lzw")
    cut = bears.post(damaged[:2000] + b"\0" * 500 + damaged[2500:])
    assert_problem(cut, 422, "corrupt-image")
    line = bears.wait_for(cut.headers["x-request-id"]).string
    lines = bears.lines[[identity in line for line in bears.lines].index(True) :]
    assert lines == [lines[0], line]

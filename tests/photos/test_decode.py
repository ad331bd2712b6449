"""Pictures of strangers: what is accepted, what is refused and why; and mutants of every kind, of which
Pillow is the judge.
"""

import io
import random
import struct
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from app.errors import BadImage, RequestError, UnsupportedMedia
from app.photos.decode import FORMATS, MAX_PIXELS, MAX_SIDE, decode
from tests.conftest import DATA, IMAGES, SECONDS, ServerProcess, image_bytes, peak_memory
from tests.http_client import assert_problem

MUTANTS = 4_000  # about eight seconds
SENT = 300
MODES = ("1", "L", "LA", "P", "PA", "I;16", "I", "F", "LAB", "CMYK", "YCbCr", "RGB", "RGBA")
TIFFS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma", "group3", "group4")
ORIENTATION = 0x0112
SRGB = ImageCms.createProfile("sRGB")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Noise: every pixel matters."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_pictures_of_every_kind_decode_as_fastai_loads_them(vision: Any, path: Any) -> None:
    np.testing.assert_array_equal(decode(path.read_bytes(), "ignore"), vision.PILImage.create(path))


@pytest.mark.fault("U30")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_pillow_turns_them(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(40, 30), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.fault("U30")
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_turns_nothing(orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(40, 30), "PNG", exif=exif)
    assert decode(data).size == (40, 30)


@pytest.mark.fault("U31")
def test_damaged_exif_spoils_no_picture() -> None:
    data = encoded(photo(40, 30), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data).size == (40, 30)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_accepted_format_is_decoded(kind: str) -> None:
    assert decode(encoded(photo(40, 30), kind)).size == (40, 30)


@pytest.mark.fault("U24")
def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((10, 10)) == (254, 0, 0) or decode(data).getpixel((10, 10)) == (255, 0, 0)


@pytest.mark.fault("U18", "U25", "U26")
@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        (b"", RequestError, "empty-file"),
        (b"hello", UnsupportedMedia, "unrecognised-image"),
        (b"<html>", UnsupportedMedia, "unrecognised-image"),
        (b"%PDF-1.7 ...", UnsupportedMedia, "format-not-allowed"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UnsupportedMedia, "format-not-allowed"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedMedia, "format-not-allowed"),
        (encoded(Image.new("1", (13377, 13377)), "PNG"), BadImage, "image-too-large"),
        (encoded(Image.new("1", (30000, 2)), "PNG"), BadImage, "image-too-large"),
        (encoded(Image.new("1", (14000, 14000)), "PNG"), BadImage, "image-too-large"),
        (image_bytes("a05_640x480.jpg")[:20000], BadImage, "truncated-image"),
        (encoded(Image.new("RGB", (40, 30)), "PPM"), UnsupportedMedia, "unrecognised-image"),
    ],
)
def test_an_unusable_picture_is_refused_with_its_code(
    data: bytes, error: type[RequestError], code: str
) -> None:
    with pytest.raises(error) as caught:
        decode(data)
    assert caught.value.code == code


@pytest.mark.fault("U20")
@pytest.mark.parametrize("exif", ["turn", "ignore"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_half_a_picture_is_never_taken_for_a_whole_one(kind: str, exif: Any) -> None:
    data = encoded(photo(200, 150), kind)
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2], exif)


def test_a_tiff_with_tiles_larger_than_any_picture_is_refused() -> None:
    entries = [
        (256, 100),
        (257, 100),
        (258, 8),
        (259, 5),
        (262, 1),
        (277, 1),
        (322, 46000),
        (323, 46000),
        (324, 8),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (325, 50)])
    data = b"II*\0" + struct.pack("<IH", 8, len(entries) + 1) + directory + bytes(100)
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.code == "image-too-large"


SEEDS = [encoded(photo(24, 18), kind) for kind in FORMATS]


@pytest.mark.fault("U22")
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12),
    cut=st.one_of(st.none(), st.integers(1, 2000)),
)
@settings(max_examples=600)
def test_damaged_pictures_give_a_picture_or_a_request_error(
    seed: bytes, edits: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(seed)
    for position, value in edits:
        data[position % len(data)] = value
    start = time.thread_time()
    try:
        assert decode(bytes(data[:cut])).mode == "RGB"
    except RequestError as error:
        assert error.status in (415, 422)
    assert time.thread_time() - start < 5


def test_the_pictures_of_these_tests_are_the_61_of_their_list() -> None:
    assert len(IMAGES) == 61
    assert (DATA / "images" / "k03_spaces and ünïcode.jpg").exists()


# --- mutants ------------------------------------------------------------------------------------------------


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("LA", "PA"):
        return image.convert("RGBA").convert(mode)
    return image.convert("L").convert(mode) if mode in ("1", "I;16", "I", "F") else image.convert(mode)


def originals() -> Iterator[tuple[str, bytes]]:
    """Every mode in every format that can hold it, TIFF's compressions, and the smaller test pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    image = Image.fromarray(pixels)
    for mode in MODES:
        for kind in FORMATS:
            try:
                yield f"{mode} {kind}", encoded(as_mode(image, mode), kind)
            except (OSError, KeyError, ValueError):
                continue  # that format cannot hold that mode
    for name in TIFFS:
        source = image.convert("1") if name.startswith("group") else image
        yield f"TIFF {name}", encoded(source, "TIFF", compression=name)
    yield "interlaced GIF", encoded(image, "GIF", interlace=1)
    yield "progressive JPEG", encoded(image, "JPEG", progressive=True, exif=exif(6))
    yield "animated WebP", encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)])
    yield "lossless WebP", encoded(image, "WEBP", lossless=True, exif=exif(3))
    yield from ((path.name, path.read_bytes()) for path in IMAGES if path.stat().st_size < 30_000)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data.tobytes()


def mutant(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, more often at the beginning; cut off, spliced, lengthened."""
    result = bytearray(data)
    for _ in range(chance.randint(0, 6)):
        reach = min(len(result), chance.choice((40, 400, len(result))))
        result[chance.randrange(reach)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    match chance.randrange(6):
        case 0:
            del result[chance.randrange(len(result)) :]
        case 1:
            start = chance.randrange(len(result))
            result[start:start] = result[: chance.randrange(200)]
        case 2:
            start = chance.randrange(len(result))
            del result[start : start + chance.randrange(1, 50)]
        case 3:
            result += chance.randbytes(chance.randrange(100))
    return bytes(result)


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    chance, sources = random.Random(seed), list(originals())
    for _ in range(count):
        name, data = chance.choice(sources)
        yield name, mutant(chance, data)


def pillow(data: bytes) -> tuple[str, Image.Image | None]:
    """What Pillow says of a file: "415", "422", or "200" with the picture."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        return "415", None
    except Exception:
        return "422", None
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        return "422", None
    try:
        image.load()
        return "200", image.convert("RGB")
    except Exception:
        return "422", None


@pytest.mark.fault("U18", "U20", "U21", "U22", "U29")
def test_every_mutant_gets_the_verdict_of_pillow() -> None:
    slowest = 0.0
    for name, data in mutants(MUTANTS, seed=6):
        if not data:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, expected = pillow(data)
            start = time.thread_time()
            try:
                image = decode(data, "ignore")
            except RequestError as error:
                assert str(error.status) == verdict, (name, error, data[:80])
                assert (verdict == "415") == isinstance(error, UnsupportedMedia)
                continue
            finally:
                slowest = max(slowest, time.thread_time() - start)
        assert verdict == "200", (name, data[:80])
        assert expected is not None
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert slowest < 2


@pytest.mark.fault("U30", "U31")
def test_a_mutant_whose_orientation_pillow_can_read_is_turned_as_pillow_turns_it() -> None:
    chance = random.Random(7)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    for number in range(600):
        metadata = exif(number % 12)
        if number > 100:
            metadata = b"Exif\0\0" + mutant(chance, metadata.removeprefix(b"Exif\0\0"))
        data = encoded(image, chance.choice(("JPEG", "PNG", "WEBP")), exif=metadata)
        stored = Image.open(io.BytesIO(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = ImageOps.exif_transpose(stored).convert("RGB")
            except Exception:
                expected = stored.convert("RGB")
            result = decode(data)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


@pytest.mark.fault("U21", "U22", "U35")
def test_no_mutant_makes_a_server_stumble(bears: ServerProcess) -> None:
    statuses = set()
    with requests.Session() as session:
        for name, data in mutants(SENT, seed=8):
            form = {"file": (f"{name}<script>\r\n.jpg", data)}
            answer = session.post(f"{bears.url}/analyze", files=form, timeout=SECONDS)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 415, 422), (name, answer.text)
            assert b"script" not in answer.content
            line = bears.wait_for(answer.headers["x-request-id"]).string
            assert f" {answer.status_code} " in line
    assert {200, 415, 422} <= statuses
    assert session.get(f"{bears.url}/healthz", timeout=SECONDS).status_code == 200
    assert "Traceback" not in "".join(bears.lines)
    # one line a request, and nothing that a library had to say
    assert not [line for line in bears.lines if " INFO " not in line and " WARNING " not in line]


GZIPPED = bytes.fromhex("1f8b0800000000000003b3292e4bb3d3070063f4c80e06000000")


@pytest.mark.fault("U23", "U33", "U34")
@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a drawing -->\n<svg/>",
        GZIPPED,
        encoded(Image.new("RGB", (9, 9)), "EPS"),
        encoded(Image.new("RGB", (9, 9)), "PDF"),
        encoded(Image.new("RGB", (9, 9)), "DDS"),
        encoded(Image.new("P", (9, 9)), "BLP"),
        encoded(Image.new("RGB", (9, 9)), "JPEG2000"),
        b"8BPS\0\1" + bytes(100),
        b"\xd7\xcd\xc6\x9a" + bytes(100),
        b"\0\1\0\0\x12\xaf" + bytes(200),
        b"qoif\0\0\0\1\0\0\0\1\3\0" + bytes(8),
        b"\xff\x0a" + bytes(50),
        b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
        *(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" for brand in (b"heic", b"heix", b"mif1", b"msf1")),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_format_that_is_not_accepted_is_told_by_its_bytes(bears: ServerProcess, data: bytes) -> None:
    problem = assert_problem(bears.post(data, "photo.jpg"), 415, "format-not-allowed")
    assert "JPEG" in problem["detail"]


@pytest.mark.fault("U18")
@pytest.mark.parametrize(
    "data", [b"hello", b"<!doctype html><p>", b"PK\3\4" + bytes(99), b"\0" * 9999, b"MZ"]
)
def test_a_file_that_is_not_a_picture_is_not_recognized(bears: ServerProcess, data: bytes) -> None:
    assert_problem(bears.post(data, "photo.jpg"), 415, "unrecognised-image")


@pytest.mark.fault("U35")
def test_of_a_polyglot_the_pixels_count(bears: ServerProcess) -> None:
    script = b"<?php system($_GET['c']); ?><script>alert(1)</script>"
    photo = encoded(Image.new("RGB", (60, 60), "red"), "JPEG", comment=script)
    answer = bears.post(photo + b"PK\3\4" + script, "x.php")
    assert answer.json() == bears.post(encoded(Image.new("RGB", (60, 60), "red"), "JPEG")).json()
    assert_problem(bears.post(script + photo, "x.php"), 415, "unrecognised-image")


@pytest.mark.fault("U28", "U34", "U24")
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (940, 2)])
@pytest.mark.parametrize("kind", ["PNG", "AVIF", "GIF"])
def test_the_oddest_shapes_are_answered(bears: ServerProcess, kind: str, size: tuple[int, int]) -> None:
    assert bears.post(encoded(Image.new("RGB", size, "red"), kind)).status_code == 200


@pytest.mark.fault("U32")
@pytest.mark.parametrize("profile", [b"garbage", bytes(500_000), ImageCms.ImageCmsProfile(SRGB).tobytes()])
def test_color_profiles_are_ignored(bears: ServerProcess, profile: bytes) -> None:
    for image in (Image.new("RGB", (60, 60), "red"), Image.new("CMYK", (60, 60), "red")):
        plain, profiled = (encoded(image, "JPEG", icc_profile=icc) for icc in (b"", profile))
        assert bears.post(profiled).json() == bears.post(plain).json()


@pytest.mark.fault("U27")
@pytest.mark.parametrize(("size", "progressive"), [((5760, 5760), False), ((7300, 5500), True)])
def test_a_large_ordinary_photo_is_answered(
    bears: ServerProcess, size: tuple[int, int], progressive: bool
) -> None:
    photo = encoded(Image.linear_gradient("L").resize(size), "JPEG", progressive=progressive)
    assert bears.post(photo).status_code == 200


@pytest.mark.fault("U25", "U26")
@pytest.mark.parametrize("mode", ["1", "RGBA"])
def test_a_bomb_costs_nothing(bears: ServerProcess, mode: str) -> None:
    """13377 x 13377 is below what Pillow itself warns of, and takes it 0.8 to 1.3 GB."""
    bomb = encoded(Image.new(mode, (13_377, 13_377)), "PNG")
    bears.post(IMAGES[0].read_bytes())
    with peak_memory(bears) as grown:
        assert_problem(bears.post(bomb), 422, "image-too-large")
    assert grown() < 10_000


@pytest.mark.fault("U18")
@pytest.mark.parametrize("piece", [b" ", b"\n", b"<!--", b"<?xml "])
def test_a_file_of_blanks_is_refused_at_once(piece: bytes) -> None:
    data = piece * (9_000_000 // len(piece))
    start = time.thread_time()
    with pytest.raises(UnsupportedMedia):
        decode(data)
    assert time.thread_time() - start < 0.05  # searching all of it takes over 0.1 s

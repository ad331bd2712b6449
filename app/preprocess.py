"""From the bytes of a photo to the pixels a network was trained on: (3, H, W) float32, exactly as fastai
makes them.

`decode` reads the bytes, `Preprocess` is one of fastai's validation-time pipelines. The numbers in
parentheses are lines of fastai 2.8.12's vision/augment.py and of fastai 1.0.50's vision/image.py."""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,  # noqa: F401  registers its format, as the six below do; Image.init() would load forty
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from app.errors import BadImage, BadRequest, UnsupportedMedia

Float32 = npt.NDArray[np.float32]
PipelineName = Literal["resize", "random_resized_crop", "fastai1"]
ResizeMethod = Literal["crop", "squish", "pad"]
Exif = Literal["turn", "ignore"]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS: Final = 50_000_000  # 150 MB as RGB; imgproxy's default, and above any phone's usual photo
MAX_SIDE: Final = 20_000
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
VAL_XTRA: Final = 0.14  # RandomResizedCrop's default (2.8: 304)

# EXIF 2.32, table 7: what turns the stored pixels upright
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION: Final = 0x0112

# Pictures that people have and that are refused, told by their first bytes
REFUSED: Final = (
    (4, b"ftyphei", "a HEIC photo"),
    (4, b"ftyphev", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIF photo"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
)


def decode(data: bytes, exif: Exif = "turn") -> Image.Image:
    """The first frame of a picture in one of FORMATS, as an RGB image, alpha dropped as fastai does.

    With `exif` "turn" it is turned upright as its EXIF orientation says; fastai itself ignores that.
    Raises BadRequest, UnsupportedMedia or BadImage, whatever the bytes are.
    """
    if not data:
        raise BadRequest("The file is empty (0 bytes); send a picture.", "empty-file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of metadata that it then ignores
        image = _open(data)
        _check_size(*image.size)
        orientation = _orientation(image) if exif == "turn" else 1
        try:
            image.load()
            image = image._new(image.im).convert("RGB")  # as fastai does (2.8: vision/core.py:99)
        except Exception as error:  # each of Pillow's forty plugins raises what it likes on damaged bytes
            raise _undecodable(error) from error
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _open(data: bytes) -> Image.Image:
    """Read the header only. Raises UnsupportedMedia where none of the accepted formats is recognised."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        for offset, signature, found in REFUSED:
            if data[offset : offset + 16].startswith(signature):
                raise UnsupportedMedia(
                    f"This is {found}; JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read. "
                    "Export it as JPEG, or take a screenshot of it.",
                    "format-not-allowed",
                ) from error
        raise UnsupportedMedia(
            f"No picture was recognised in these {len(data):,} bytes; JPEG, PNG, WebP, GIF, BMP, TIFF and "
            "AVIF are read."
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large("over 178 million pixels") from error
    except Exception as error:  # recognised, but its header is damaged: any plugin, any exception
        raise _undecodable(error) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(f"{width} x {height} pixels")
    if min(width, height) < 1:
        raise BadImage(f"The picture has {width} x {height} pixels: there is nothing in it.")


def _too_large(found: str) -> BadImage:
    return BadImage(
        f"The picture has {found}; up to {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE:,} on a side "
        "are read. "
        "Scale it down and try again.",
        "image-too-large",
    )


def _undecodable(error: Exception) -> BadImage:
    if "truncated" in str(error).lower():
        return BadImage(
            "The picture is cut off: its end is missing. Copy or download it again.", "truncated-image"
        )
    return BadImage("The picture is damaged and cannot be read whole. Open it in a viewer and save it again.")


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; 1 where there is none or it cannot be read: that spoils no picture."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever EXIF, XMP and TIFF parsers raise on strangers' bytes
        return 1


@dataclass(frozen=True)
class Preprocess:
    """One of fastai's validation-time pipelines, from an RGB image to normalised pixels.

    `size` is the side in pixels of the square that the network sees; `method` matters to "resize" alone.
    """

    pipeline: PipelineName = "resize"
    size: int = 224
    method: ResizeMethod = "crop"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Float32:
        """(H, W) RGB image -> (3, size, size) float32, (x / 255 - mean) / std. Raises BadImage."""
        match self.pipeline:
            case "resize":
                pixels = _scaled(resize(image, self.size, self.method))
            case "random_resized_crop":
                pixels = _scaled(random_resized_crop(image, self.size))
            case "fastai1":
                pixels = fastai1(image, self.size)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _scaled(image: Image.Image) -> Float32:
    return np.asarray(image, np.float32) / np.float32(255)


def resize(image: Image.Image, size: int, method: ResizeMethod) -> Image.Image:
    """v2's `Resize(size, method)` at validation (2.8: 240-272): crop or pad to a square, or squish; then
    bilinear.
    """
    width, height = image.size
    if method != "squish":
        longer = max if method == "pad" else min
        side = int(longer(width / size, height / size) * size)
        image = _centred(image, side)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _centred(image: Image.Image, side: int) -> Image.Image:
    """The central square of `side` pixels, mirrored outwards where the image ends (2.8: 127-138)."""
    width, height = image.size
    left, top = int((width - side) * 0.5), int((height - side) * 0.5)
    image = image.crop((max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)))
    if image.size == (side, side):
        return image
    if side * side > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels, padded to {side} x {side}")
    rows = (max(-top, 0), side - image.height - max(-top, 0))
    columns = (max(-left, 0), side - image.width - max(-left, 0))
    return Image.fromarray(np.pad(np.asarray(image), (rows, columns, (0, 0)), "reflect"))


def random_resized_crop(image: Image.Image, size: int) -> Image.Image:
    """v2's `RandomResizedCrop(size)` at validation (2.8: 295-325): squish to a bit more than size, cut the
    centre.
    """
    extra = math.ceil(size * VAL_XTRA / 8) * 8
    edge = extra // 2
    squished = image.resize((size + extra, size + extra), Image.Resampling.BILINEAR)
    return squished.crop((edge, edge, edge + size, edge + size))


# --- fastai v1: not Pillow but torch's grid_sample, on floats -----------------------------------------------


def fastai1(image: Image.Image, size: int) -> Float32:
    """v1's `size=224` at validation (1.0.50: 388-409, 523-545, 593): (size, size, 3) float32 in 0..1.

    An area pre-shrink, then bilinear `grid_sample`, then a centre crop. All three are linear and separable:
    one weight matrix for the rows and one for the columns, of the kept rows and columns alone."""
    width, height = image.size
    ratio = min(height / size, width / size)
    target_height, target_width = round(height / ratio), round(width / ratio)
    shrink = min(height / target_height, width / target_width) / 2
    rows = _resampling(height, target_height, shrink, size)
    columns = _resampling(width, target_width, shrink, size)
    pixels = _weighted_sum(rows, np.asarray(image))  # (size, W, 3)
    return _weighted_sum(columns, pixels.transpose(1, 0, 2)).transpose(1, 0, 2) / np.float32(255)


def _resampling(length: int, target: int, shrink: float, size: int) -> Float32:
    """(size, length) weights from the `length` source pixels of an axis to the `size` central ones of
    `target`.
    """
    first = int((target - size + 1) * 0.5)
    kept = slice(first, first + size)
    if target == length:  # one axis keeps its length: then v1 keeps both
        return np.eye(length, dtype=np.float32)[kept]
    # v1 says interpolate(scale_factor=1/shrink): the product decides whether 448 or, by a rounding error, 447
    # remain
    shrunk = math.floor(length * (1 / shrink))
    windows = _area(length, shrunk) if shrink > 1 else np.eye(length, dtype=np.float32)
    return _bilinear(len(windows), target)[kept] @ windows


def _area(length: int, target: int) -> Float32:
    """(target, length) weights of `adaptive_avg_pool2d`: means over windows that may overlap by a pixel."""
    weights = np.zeros((target, length), np.float32)
    for index in range(target):
        start, end = index * length // target, -(-(index + 1) * length // target)
        weights[index, start:end] = 1 / (end - start)
    return weights


def _bilinear(length: int, target: int) -> Float32:
    """(target, length) weights of `grid_sample` on linspace(-1, 1) with align_corners=True, in torch's
    float32.
    """
    grid = np.linspace(-1, 1, target) if target > 1 else np.array([-1.0])
    position = np.clip((grid + 1) / 2 * (length - 1), 0, length - 1)
    left = np.minimum(position.astype(int), max(length - 2, 0))
    fraction = position - left
    weights = np.zeros((target, length), np.float32)
    everywhere = np.arange(target)
    weights[everywhere, left] = 1 - fraction
    weights[everywhere, np.minimum(left + 1, length - 1)] += fraction
    return weights


def _weighted_sum(weights: Float32, pixels: npt.NDArray[Any]) -> Float32:
    """(n, L) weights, (L, M, 3) pixels -> (n, M, 3): a matrix product that skips the zeros of a banded
    matrix.
    """
    result = np.empty((len(weights), *pixels.shape[1:]), np.float32)
    for row, out in zip(weights, result, strict=True):
        used = np.flatnonzero(row)
        band = slice(used[0], used[-1] + 1)
        out[:] = np.tensordot(row[band], pixels[band], axes=1)
    return result

"""Pixels: against fastai, torch and Pillow; and what becomes of bytes that are no picture."""

import io
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import BadImage
from app.photos.fastai_steps import Resize
from app.photos.resample import FILTERS, Filter
from app.photos.transforms import Preprocess
from app.types import Size
from tests.conftest import DATA, named

# sizes at which a rounding or an axis decides: narrow, square, one above, one below, tiny, and a large one
SIZES = [(224, 224), (223, 225), (449, 448), (640, 480), (1, 1), (3, 200), (1600, 120), (2500, 2500)]


def photo(width: int, height: int) -> Image.Image:
    """Noise: every pixel matters."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def unnormalized(name: Any, size: Size = (224, 224), **options: Any) -> Preprocess:
    return named(name, size, mean=(0, 0, 0), std=(1, 1, 1), **options)


# --- the pipelines -----------------------------------------------------------------------------------------


def validation_pixels(transform: Any, image: Any) -> np.ndarray:
    """What fastai's item transform makes of an image at validation, in 0..1."""
    return np.asarray(transform(image, split_idx=1), np.float32).transpose(2, 0, 1) / 255


@pytest.mark.parametrize("size", [(224, 224), (160, 160), (192, 256)])
@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
def test_resize_is_exactly_fastais(vision: Any, method: Any, size: Size) -> None:
    transform = vision.Resize(size, method=method)
    for width, height in SIZES:
        image = photo(width, height)
        expected = validation_pixels(transform, vision.PILImage(image))
        np.testing.assert_array_equal(unnormalized("resize", size, method=method)(image), expected)


@pytest.mark.parametrize("pad_mode", ["reflection", "border", "zeros"])
def test_every_padding_is_exactly_fastais(vision: Any, pad_mode: Any) -> None:
    transform = vision.Resize(224, method="pad", pad_mode=pad_mode)
    for width, height in SIZES:
        image = photo(width, height)
        expected = validation_pixels(transform, vision.PILImage(image))
        np.testing.assert_array_equal(
            unnormalized("resize", method="pad", pad_mode=pad_mode)(image), expected
        )


@pytest.mark.parametrize(
    ("size", "val_xtra"), [((224, 224), 0.14), ((160, 160), 0.3), ((192, 256), 0.0), ((128, 128), 0.14)]
)
def test_random_resized_crop_is_exactly_fastais(vision: Any, size: Size, val_xtra: float) -> None:
    transform = vision.RandomResizedCrop(size, val_xtra=val_xtra)
    for width, height in SIZES:
        image = photo(width, height)
        expected = validation_pixels(transform, vision.PILImage(image))
        ours = unnormalized("random_resized_crop", size, val_xtra=val_xtra)(image)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
@pytest.mark.parametrize(("presize", "size"), [(460, 224), (480, (192, 256)), (128, 128), (224, 299)])
def test_presizing_is_fastais(vision: Any, presize: int, size: int | Size, method: Any) -> None:
    item = vision.Resize(presize, method=method)
    (batch,) = (t for t in vision.aug_transforms(size=size) if isinstance(t, vision.AffineCoordTfm))
    two = size if isinstance(size, tuple) else (size, size)
    for width, height in SIZES:
        image = photo(width, height)
        pixels = vision.TensorImage(torch.from_numpy(validation_pixels(item, vision.PILImage(image)))[None])
        expected = batch(pixels, split_idx=1)[0].numpy()
        ours = unnormalized("presize", two, presize=(presize, presize), method=method)(image)
        assert np.abs(ours - expected).max() <= 2e-4, (width, height)  # torch rounds positions to float32


def torch_fastai1(image: Image.Image, size: Size, method: str) -> np.ndarray:
    """The operations of fastai 1.0.50 themselves: interpolate, grid_sample, crop."""
    functional = torch.nn.functional
    x = torch.tensor(np.asarray(image)).permute(2, 0, 1).float().div(255)
    height, width = x.shape[1:]
    ratio = min(height / size[0], width / size[1])
    target = (round(height / ratio), round(width / ratio)) if method == "crop" else size
    if target != (height, width):
        shrink = min(height / target[0], width / target[1]) / 2
        if shrink > 1:
            sizes = [math.floor(side * (1 / shrink)) for side in (height, width)]
            x = functional.adaptive_avg_pool2d(x, sizes)
        rows, columns = (torch.linspace(-1, 1, side) if side > 1 else torch.tensor([-1.0]) for side in target)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2)[None]
        x = functional.grid_sample(x[None], grid, "bilinear", "reflection", align_corners=True)[0]
    top, left = (int((there - kept + 1) * 0.5) for there, kept in zip(x.shape[1:], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]].numpy()


@pytest.mark.parametrize("method", ["crop", "squish"])
@pytest.mark.parametrize("size", [(224, 224), (128, 128), (192, 256)])
def test_fastai1_is_what_torch_makes_of_fastai_v1s_operations(size: Size, method: Any) -> None:
    for width, height in SIZES:
        image = photo(width, height)
        difference = np.abs(
            unnormalized("fastai1", size, method=method)(image) - torch_fastai1(image, size, method)
        )
        assert difference.max() <= 2e-4, (width, height)  # torch rounds positions to float32; this is noise


@pytest.mark.parametrize("pipeline", ["resize", "random_resized_crop", "presize", "fastai1"])
def test_no_shape_of_picture_makes_a_pipeline_take_much_memory(pipeline: Any) -> None:
    for width, height in ((20000, 1), (1, 20000), (20000, 300), (2400, 20000)):
        image = Image.new("RGB", (width, height))
        tracemalloc.start()
        unnormalized(pipeline)(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2.5 * 3 * max(width * height, 20_000_000), (width, height)


def test_normalization_is_fastais(vision: Any) -> None:
    image = photo(224, 224)
    tensor = vision.TensorImage(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255)
    expected = vision.Normalize.from_stats(*vision.imagenet_stats, cuda=False)(tensor)[0].numpy()
    np.testing.assert_allclose(named("resize")(image), expected, atol=1e-6)


def test_padding_cannot_be_made_to_fill_the_memory() -> None:
    with pytest.raises(BadImage, match="padded to 20000 x 20000"):
        unnormalized("resize", method="pad")(Image.new("RGB", (1, 20000)))


@pytest.mark.parametrize("resample", FILTERS)
def test_a_jpeg_decoded_small_gives_nearly_the_same_pixels_where_that_is_allowed(resample: Filter) -> None:
    preprocess = Preprocess((Resize((100, 100), resample=resample),), (0.0,) * 3, (1.0,) * 3)
    if preprocess.least is None:
        assert resample in ("nearest", "box")
        return
    path = DATA / "images" / "b01_12mp_3000x4000.jpg"
    with Image.open(path) as whole, Image.open(path) as small:
        small.draft("RGB", preprocess.least[::-1])
        assert small.width * 4 == whole.width
        difference = np.abs(preprocess(whole.convert("RGB")) - preprocess(small.convert("RGB")))
    assert difference.mean() * 255 < 0.2

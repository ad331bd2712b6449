"""The steps inside an exported model against the pipelines that serve: Pillow itself, level by level."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from app.errors import BadImage
from app.exporting.pipeline import write_pipeline
from app.exporting.values import Writer
from app.graphs.protobuf import message, number, tensor, text, value_info
from app.photos.decode import decode
from app.photos.fastai1_steps import FastaiV1
from app.photos.fastai_steps import (
    AffineCoordTfm,
    CropPad,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
)
from app.photos.resample import FILTERS
from app.photos.torchvision_steps import CenterCrop, TorchvisionResize
from app.photos.transforms import Preprocess, Step
from tests.conftest import IMAGES
from tests.test_parity import TELLING

SMALL = (64, 64)
IN_LEVELS: list[tuple[Step, ...]] = [
    (Resize((224, 224)),),
    (Resize((224, 224), "squish"),),
    (Resize((224, 224), "pad"),),
    (Resize(SMALL, "pad", "zeros"),),
    (Resize((100, 150), "pad", "border"),),
    *((Resize((64, 48), resample=each),) for each in FILTERS),
    (RandomResizedCrop((224, 224)),),
    (CropPad((224, 224)),),
    (CropPad((300, 120), "reflection"),),
    (RandomCrop(SMALL),),
    (RatioResize(90),),
    (TorchvisionResize(256), CenterCrop((224, 224))),
    (TorchvisionResize(60, max_size=70), CenterCrop((75, 64))),
    (TorchvisionResize((60, 70), "bicubic"),),
    (),
]
IN_NUMBERS: list[tuple[Step, ...]] = [
    (Resize((460, 460)), AffineCoordTfm((224, 224))),
    (AffineCoordTfm((64, 60), "nearest"),),
    (AffineCoordTfm((64, 60), "nearest", align_corners=False),),
    (AffineCoordTfm((224, 224), "bicubic", "zeros"),),
    (AffineCoordTfm((300, 200), "bilinear", "border", align_corners=False),),
    (AffineCoordTfm((300, 200), "bilinear", "reflection", align_corners=False),),
    (Resize(SMALL), AffineCoordTfm((90, 90)), RandomResizedCropGPU((48, 48))),
    (AffineCoordTfm(),),
    (RandomResizedCropGPU((224, 224)),),
    (RandomResizedCropGPU(None, (1, 1)),),
    (FastaiV1((224, 224)),),
    (FastaiV1((100, 224), "squish"),),
    (FastaiV1((224, 224), "pad"),),
    (FastaiV1((120, 90), "pad", "zeros"),),
]
ALL = [pytest.param(steps, id=", ".join(map(str, steps)) or "none") for steps in IN_LEVELS + IN_NUMBERS]
PHOTOS = [decode(photo.read_bytes()) for photo in IMAGES]


def nodes(preprocess: Preprocess, channels: int = 3) -> ort.InferenceSession:
    """The pipeline alone, as a model from `image` to `pixels` that ONNX's own checker accepts."""
    writer = Writer("photo")
    write_pipeline(writer, preprocess, channels)
    graph = [*writer.nodes, text(2, "pipeline")]
    graph += [message(5, tensor(name, array)) for name, array in writer.constants.items()]
    graph += [message(11, value_info("image", np.uint8, ("height", "width", "channels")))]
    graph += [message(12, value_info("pixels", np.float32, ("n", "c", "h", "w")))]
    model = number(1, 9) + message(7, b"".join(graph)) + message(8, text(1, "") + number(2, 20))
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model)


def worst_difference(preprocess: Preprocess, photos: list[Image.Image]) -> float:
    """The largest difference of any pixel, in units after Normalize, of the photos that are served."""
    session, worst = nodes(preprocess), 0.0
    for photo in photos:
        try:
            expected = preprocess(photo)
        except BadImage:
            continue
        (found,) = session.run(None, {"image": np.asarray(photo)})
        assert found.shape == (1, *expected.shape)
        worst = max(worst, float(np.abs(found[0] - expected).max(initial=0)))
    return worst


@pytest.mark.parametrize("steps", ALL)
def test_every_step_makes_the_pixels_of_the_server(steps: tuple[Step, ...]) -> None:
    photos = [decode(photo.read_bytes()) for photo in TELLING]
    assert worst_difference(Preprocess(steps), photos) <= (0 if steps in IN_LEVELS else 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("steps", ALL)
def test_every_step_does_so_in_both_orders_of_pillow_and_in_gray(
    steps: tuple[Step, ...], mode: str, newest: bool
) -> None:
    preprocess = Preprocess(steps, mode=mode, newest_pillow=newest)  # type: ignore[arg-type]
    assert worst_difference(preprocess, PHOTOS[::8]) <= (0 if steps in IN_LEVELS else 1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photo_with_the_order_of_the_newest_pillow_differs_and_is_repeated(mode: str) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (500, 230, 3), np.uint8))
    pixels = [Preprocess((Resize((224, 224), "squish"),), newest_pillow=newest)(photo) for newest in (0, 1)]
    assert (pixels[0] != pixels[1]).any()
    for newest in (False, True):
        preprocess = Preprocess((Resize((224, 224), "squish"),), newest_pillow=newest, mode=mode)  # type: ignore[arg-type]
        assert worst_difference(preprocess, [photo]) == 0


def test_alpha_is_dropped_and_not_blended() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (50, 70, 4), np.uint8)
    session = nodes(Preprocess((Resize(SMALL),)))
    (found,) = session.run(None, {"image": pixels})
    expected = Preprocess((Resize(SMALL),))(Image.fromarray(np.ascontiguousarray(pixels[..., :3])))
    assert (found[0] == expected).all()


def test_a_gray_photo_becomes_three_channels_for_a_network_that_has_three() -> None:
    preprocess = Preprocess((Resize(SMALL),), mean=(0.5,), std=(0.25,), mode="L")
    (one,), (three,) = (nodes(preprocess, n).run(None, {"image": np.asarray(PHOTOS[0])}) for n in (1, 3))
    assert one.shape == (1, 1, *SMALL)
    assert (three == np.repeat(one, 3, axis=1)).all()

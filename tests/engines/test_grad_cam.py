"""Heat maps against torch's own gradients, and against pictures whose answer is in one corner."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from app.engines.grad_cam import grad_cam, overlay
from app.engines.head import read_head
from app.errors import NotExplained
from app.photos.transforms import Preprocess
from tests.conftest import BEARS, DATA, SECONDS, ServerProcess, image_bytes, named
from tests.engines.test_head import CHANNELS, VARIANTS, arrays_of, feature_map, spread

PHOTO = image_bytes("a05_640x480.jpg")
PIPELINES = [
    named(),
    named(method="squish"),
    named(method="pad", pad_mode="zeros"),
    named("random_resized_crop"),
    named("presize"),
    named("fastai1"),
    named("fastai1", method="squish"),
    named(size=(128, 224)),
]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.get("pool") is not False], ids=str)
def test_the_heat_is_what_torchs_gradients_give(vision: Any, variant: dict[str, Any]) -> None:
    module = spread(vision.create_head(CHANNELS, 5, **variant))
    head = read_head(arrays_of(module), CHANNELS)
    for row, output in ((0, 1), (1, 4)):
        features = feature_map()[row : row + 1].requires_grad_()
        (gradient,) = torch.autograd.grad(module(features)[0, output], features)
        with torch.no_grad():  # Grad-CAM as its paper has it
            expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].relu().numpy()
        assert expected.max() > 0
        heat = grad_cam(head, features.detach().numpy()[0], output)
        np.testing.assert_allclose(heat, expected / expected.max(), atol=1e-5)


def test_a_body_that_pools_by_itself_is_not_explained(vision: Any) -> None:
    head = read_head(
        arrays_of(spread(vision.create_head(CHANNELS, 5, pool=False, concat_pool=False))), CHANNELS
    )
    with pytest.raises(NotExplained, match="pools inside its body"):
        grad_cam(head, feature_map(pooled=True).numpy()[0], 0)


@pytest.mark.parametrize("preprocess", PIPELINES, ids=str)
@pytest.mark.parametrize("size", [(640, 480), (300, 900), (224, 224)], ids=str)
def test_what_is_seen_of_a_photo_is_what_the_pipeline_keeps(
    preprocess: Preprocess, size: tuple[int, int]
) -> None:
    """The oracle: a picture whose red says how far right and whose green how far down each pixel is."""
    across, down = ((np.arange(length) + 0.5) / length * 255 for length in size)
    grid = np.stack(np.broadcast_arrays(across[np.newaxis, :], down[:, np.newaxis], 128.0), axis=2)
    pixels = preprocess(Image.fromarray(grid.round().astype(np.uint8)))
    shares = pixels * np.reshape(preprocess.std, (3, 1, 1)) + np.reshape(preprocess.mean, (3, 1, 1))
    left, top, width, height = preprocess.shown(*size[::-1])[0]
    rows, columns = shares.shape[1:]
    # the positions that the region gives to the middle row and column, where no padding is
    expected_across = left + (np.arange(columns) + 0.5) / columns * width
    expected_down = top + (np.arange(rows) + 0.5) / rows * height
    within = (expected_across > 0.02) & (expected_across < 0.98)
    np.testing.assert_allclose(shares[0, rows // 2, within], expected_across[within], atol=0.01)
    within = (expected_down > 0.02) & (expected_down < 0.98)
    np.testing.assert_allclose(shares[1, within, columns // 2], expected_down[within], atol=0.01)


def test_the_overlay_is_clear_outside_the_region_and_brightest_where_the_heat_is() -> None:
    heat = np.zeros((7, 7), np.float32)
    heat[0, 6] = 1  # the top right of what the network saw, which is the middle of the photo
    image = Image.open(io.BytesIO(overlay(heat, (0.25, 0.0, 0.5, 1.0), 800, 400))).convert("RGBA")
    assert image.size == (256, 128)
    pixels = np.asarray(image)
    assert pixels[:, :63, 3].max() == 0 and pixels[:, 193:, 3].max() == 0
    assert pixels[:, 65:191, 3].min() > 0
    row, column = np.unravel_index(pixels[..., :3].sum(axis=2).argmax(), (128, 256))
    assert row < 128 / 7 and 192 - 128 / 7 < column < 192


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (2000, 150)], ids=str)
def test_an_overlay_has_the_shape_of_any_photo(size: tuple[int, int]) -> None:
    png = overlay(np.eye(3, dtype=np.float32), named().shown(*size[::-1])[0], *size)
    width, height = Image.open(io.BytesIO(png)).size
    assert max(width, height) == 256
    assert width / height == pytest.approx(max(size[0] / size[1], 1 / 256), rel=0.05)


# --- over HTTP ---------------------------------------------------------------------------------------------


def explain(server: ServerProcess, **query: str) -> requests.Response:
    return requests.post(
        f"{server.url}/explain", files={"file": ("x.jpg", PHOTO)}, params=query, timeout=SECONDS
    )


def test_the_likeliest_class_is_explained_with_the_score_of_its_answer(bears: ServerProcess) -> None:
    answer, why = bears.post(PHOTO).json(), explain(bears).json()
    assert why.keys() == {"label", "score", "heatmap", "region", "image"}
    assert (why["label"], why["score"]) == (answer["result"], pytest.approx(answer["confidence"], abs=1e-5))
    assert np.shape(why["heatmap"]) == (13, 13)
    assert np.max(why["heatmap"]) == 1 and np.min(why["heatmap"]) >= 0
    assert why["region"] == pytest.approx([0.125, 0, 0.75, 1])
    png = base64.b64decode(why["image"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(png)).size == (256, 192)
    assert len(png) < 15_000


def test_a_named_class_is_explained(bears: ServerProcess) -> None:
    whys = [explain(bears, label=name).json() for name in BEARS]
    assert [why["label"] for why in whys] == list(BEARS)
    assert sum(why["score"] for why in whys) == pytest.approx(1, abs=1e-4)
    assert whys[0]["heatmap"] != whys[1]["heatmap"]


def test_a_raw_body_is_explained_too(bears: ServerProcess) -> None:
    headers = {"Content-Type": "image/jpeg"}
    answer = requests.post(f"{bears.url}/explain", PHOTO, headers=headers, timeout=SECONDS)
    assert answer.json() == explain(bears).json()


def test_a_class_that_is_not_there_is_refused_by_name(bears: ServerProcess) -> None:
    answer = explain(bears, label="panda")
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown-label")
    assert "no class 'panda'; there are black, grizzly, teddys" in answer.json()["detail"]


def test_what_is_no_picture_is_refused_as_everywhere(bears: ServerProcess) -> None:
    answer = requests.post(f"{bears.url}/explain", files={"file": ("x.jpg", b"x")}, timeout=SECONDS)
    assert (answer.status_code, answer.json()["code"]) == (415, "unrecognised-image")


def test_the_fastai_engine_says_that_it_has_no_heat_maps(start_server: Any) -> None:
    server = start_server(
        APP_MODEL_URL=str(DATA / "v1" / "stage-2.pth"), APP_CLASSES=",".join(BEARS), APP_ENGINE="fastai"
    )
    server.wait_for("ready after")
    answer = explain(server)
    assert (answer.status_code, answer.json()["code"]) == (501, "not-explained")
    assert 'engine = "auto" has them' in answer.json()["detail"]

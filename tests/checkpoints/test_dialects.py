"""Networks under the names of other libraries answer as those libraries do; `tests/foreign.py` made them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from app.checkpoints.beside import read_beside
from app.checkpoints.reader import read_checkpoint
from app.engines.onnx_runtime import load
from app.errors import CheckpointError, ClassesMismatch
from app.serving import source
from app.serving.recognize import recognize
from app.settings import Settings
from tests.conftest import DATA, open_predictor
from tests.foreign import ARCHITECTURES, FOLDER, NAMES, Foreign, picture, read, weights
from tests.http_server import Handler, send, serving

WITH_PHOTOS = ("vit", "resnet", "convnext", "swin", "timm_wrapper")
OF_MEMORY = ("vit_memory", "swin_memory", "efficientnet_b0", "cadene_resnet18", "cadene_alexnet")
BAR = 1e-3


def write(foreign: Foreign, folder: Path) -> Path:
    """The file of the weights, and those beside it."""
    save_file(weights(foreign.shapes), folder / "model.safetensors")
    for name, content in foreign.beside.items():
        (folder / name).write_text(json.dumps(content))
    return folder / "model.safetensors"


def assert_answers(location: str, foreign: Foreign, **settings: Any) -> None:
    """The answers to the photos are those of the library, with nothing in the settings but the file."""

    async def ask() -> None:
        predictor = await open_predictor(Settings(model_url=location, exif="ignore", **settings))
        try:
            for photo, expected in foreign.answers.items():
                answer = await predictor.predict((DATA / "images" / photo).read_bytes())
                found = {each.label: each.score for each in answer.predictions}
                np.testing.assert_allclose([found[name] for name in NAMES], expected, atol=BAR)
        finally:
            await predictor.close()

    asyncio.run(ask())


def test_every_stored_network_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*WITH_PHOTOS, *OF_MEMORY} == ARCHITECTURES.keys()
    assert all(path.stat().st_size < 100_000 for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", WITH_PHOTOS)
def test_a_folder_of_hugging_face_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    foreign = read(name)
    path = write(foreign, tmp_path)
    assert recognize(read_checkpoint(path)).architecture == ARCHITECTURES[name]
    assert_answers(str(path), foreign)


@pytest.mark.parametrize("name", OF_MEMORY)
def test_a_state_dict_with_the_names_of_another_library_answers_as_it_does(name: str, tmp_path: Path) -> None:
    foreign = read(name)
    state = {key: torch.from_numpy(np.asarray(array)) for key, array in weights(foreign.shapes).items()}
    torch.save(state, tmp_path / "model.pth")
    network = recognize(read_checkpoint(tmp_path / "model.pth"))
    assert network.architecture == ARCHITECTURES[name]
    (output,) = load(network, NAMES, False).run([picture(foreign.size)])  # type: ignore[arg-type]
    np.testing.assert_allclose(output.probabilities, foreign.answers[""], atol=BAR)


def test_the_files_beside_a_link_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = read("vit")
    (tmp_path / "served").mkdir()
    path = write(foreign, tmp_path / "served")
    monkeypatch.setattr(source, "MODELS", tmp_path / "models")

    def answer(handler: Handler) -> None:
        file = path.with_name(Path(handler.path.partition("?")[0]).name)
        send(handler, file.read_bytes() if file.exists() else b"none", 200 if file.exists() else 404)

    with serving(answer) as (url, asked):
        link = f"{url}/bears/resolve/main/model.safetensors?download=true"
        assert_answers(link, foreign)
        assert_answers(link, foreign)
    names = [Path(each.partition("?")[0]).name for each in asked]
    assert names == ["model.safetensors", "config.json", "preprocessor_config.json"]


def test_a_link_without_files_beside_it_is_served_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = read("timm_wrapper")
    path = write(foreign, tmp_path)
    monkeypatch.setattr(source, "MODELS", tmp_path / "models")

    def answer(handler: Handler) -> None:
        if handler.path.endswith("safetensors"):
            send(handler, path.read_bytes())
        else:  # the page of a host that shows one for every address
            send(handler, b"<html><title>Not found</title>", headers={"Content-Type": "text/html"})

    with serving(answer) as (url, asked):
        link = f"{url}/model.safetensors"
        text = "Compose([Resize(235, interpolation=BICUBIC), CenterCrop(224), ToTensor(), "
        text += "Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])"
        assert_answers(link, foreign, classes=NAMES, transforms=text)
        assert_answers(link, foreign, classes=NAMES, transforms=text)
    assert len(asked) == 3  # the two that are not there are not asked for again


def test_classes_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    path = write(read("vit"), tmp_path)
    with pytest.raises(ClassesMismatch, match="dog, cat, bird, but the file itself says bird"):
        assert_answers(str(path), read("vit"), classes=("dog", "cat", "bird"))


def test_made_up_labels_are_not_taken_for_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert read_beside(tmp_path) == {}


NORMALIZE = "ToTensor(), Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])])"
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "ViT of 2021": ({"size": 224, "resample": 2}, f"Compose([Resize((224, 224)), {NORMALIZE}"),
    "DeiT": (
        {
            "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
        },
        "Compose([Resize((256, 256), interpolation=InterpolationMode.BICUBIC), CenterCrop((224, 224)), "
        + NORMALIZE,
    ),
    "ConvNext": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
        f"Compose([Resize(256, interpolation=InterpolationMode.BICUBIC), CenterCrop(224), {NORMALIZE}",
    ),
    "ConvNext, large": (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "resample": 2},
        f"Compose([Resize((384, 384)), {NORMALIZE}",
    ),
    "not normalized": ({"size": 224, "do_normalize": False}, "Compose([Resize((224, 224)), ToTensor()])"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_read_as_a_compose(name: str, tmp_path: Path) -> None:
    processor, expected = PROCESSORS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**HALF, **processor}))
    assert read_beside(tmp_path) == {"transforms": expected}


REFUSED: dict[str, tuple[str, dict[str, Any] | str, str]] = {
    "activation": (
        "config.json",
        {"model_type": "vit", "hidden_act": "gelu_new"},
        "hidden_act gelu_new",
    ),
    "strides": ("config.json", {"model_type": "resnet", "downsample_in_bottleneck": True}, "another place"),
    "factor": ("preprocessor_config.json", {**HALF, "rescale_factor": 0.5}, "has rescale_factor 0.5"),
    "statistics": ("preprocessor_config.json", {"image_mean": "half"}, "a mean or std that is not three"),
    "size": ("preprocessor_config.json", {**HALF, "size": {"longest_edge": 9}}, "a size that is not"),
    "cut": ("config.json", '{"id2label": {', "config.json beside the file cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_is_not_reproduced_is_refused(name: str, tmp_path: Path) -> None:
    file, content, expected = REFUSED[name]
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=expected):
        read_beside(tmp_path)


def test_another_network_of_transformers_is_named(tmp_path: Path) -> None:
    state = {
        "beit.embeddings.cls_token": np.zeros((1, 1, 8), np.float32),
        "beit.embeddings.patch_embeddings.projection.weight": np.zeros((8, 3, 4, 4), np.float32),
        "classifier.weight": np.zeros((3, 8), np.float32),
    }
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        recognize(read_checkpoint(tmp_path / "model.safetensors"))
    assert str(caught.value) == (
        "The file is a network of Hugging Face's transformers (it has beit.embeddings.cls_token, "
        "beit.embeddings.patch_embeddings.projection.weight), of a kind or size that is not shipped: run "
        "`optimum-cli export onnx --model FOLDER --task image-classification onnx`, and deploy "
        "onnx/model.onnx."
    )

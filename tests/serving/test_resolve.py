"""How a checkpoint and the settings make a recipe, and the report of `inspect`."""

import json
import mmap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import pytest
import requests
import torch

from app.checkpoints.learner_export import Export
from app.checkpoints.reader import Checkpoint, read_checkpoint
from app.checkpoints.records import Call, Global
from app.errors import CheckpointError, ClassesMismatch, SettingsError
from app.photos.decode import decode
from app.serving.resolve import Recipe, resolve
from app.settings import Settings
from app.settings_file import load_settings
from tests.conftest import BEARS, DATA, IMAGES, SECONDS, V1_CHECKPOINT, ServerProcess, named, run_app
from tests.serving.test_predictor import ask, opened

V1_EXPORT = DATA / "v1" / "export.pkl"
KNOWN = {
    "classes": ("a", "b"),
    "item_tfms": "Resize(320)",
    "batch_tfms": "[*aug_transforms(size=192), Normalize.from_stats([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])]",
}


def export_of(*unserved: str, **known: Any) -> Checkpoint:
    export = Export("fastai v2 learn.export", Call(Global("", ""), ()), known, unserved)
    return Checkpoint(Path("export.pkl"), "zip", {}, mmap.mmap(-1, 1), export)


class Facts(NamedTuple):
    """The facts of a network of fastai v2 with two outputs."""

    architecture: str = "resnet18"
    generation: int = 2
    outputs: int = 2
    size: tuple[int, int] | None = None
    channels: int = 3
    writer: str = "fastai v2"
    binary: bool = False
    labels: tuple[str, ...] = ()
    known: Mapping[str, Any] = {}


def completed(checkpoint: Checkpoint, size: tuple[int, int] | None = None, **settings: Any) -> Recipe:
    return resolve(Settings(model_url="x", **settings), checkpoint, Facts(size=size))


def test_an_export_of_v1_answers_as_v1_predicted_without_any_setting(
    v1_predictions: dict[str, np.ndarray],
) -> None:
    photos = IMAGES[::6]
    settings = Settings(model_url=str(V1_EXPORT), exif="ignore")
    for photo, answer in zip(photos, ask(settings, *(p.read_bytes() for p in photos)), strict=True):
        expected = v1_predictions[photo.name]
        assert answer.result == BEARS[expected.argmax()]
        assert answer.confidence == pytest.approx(expected.max(), abs=1e-4)


def test_an_export_of_v2_answers_as_its_learner_predicts(
    vision: Any, make_learner: Callable[..., Any]
) -> None:
    learn = make_learner(
        "squeezenet1_1", vision.Resize((192, 256), method="squish"), stats=((0.5,) * 3, (0.25,) * 3)
    )
    learn.export("export.pkl")
    photos = IMAGES[::9]
    answers = ask(
        Settings(model_url=str(learn.path / "export.pkl"), exif="ignore", pillow=PIL.__version__),
        *(p.read_bytes() for p in photos),
    )
    for photo, answer in zip(photos, answers, strict=True):
        with learn.no_bar(), learn.no_logging():
            label, _, probabilities = learn.predict(photo)
        assert answer.result == label
        assert answer.confidence == pytest.approx(float(probabilities.max()), abs=1e-3)


def test_the_file_fills_in_settings_that_are_silent() -> None:
    recipe = completed(export_of(**KNOWN))
    assert recipe.notes == ()
    assert recipe.classes == ("a", "b")
    expected = named("presize", (192, 192), presize=(320, 320), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert recipe.preprocess.steps == expected.steps
    assert (recipe.preprocess.mean, recipe.preprocess.std) == (expected.mean, expected.std)


def test_a_setting_that_contradicts_the_file_is_used_and_warned_of() -> None:
    recipe = completed(export_of(**KNOWN), image_size=(128, 128), mean=(0.5,) * 3)
    assert recipe.preprocess.size == (128, 128)
    assert recipe.notes == (
        "image_size is [128, 128] in the settings, but the file says [192, 192]: the setting is used",
    )


def test_a_setting_that_says_the_default_contradicts_the_file_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('model_url = "export.pkl"\nimage_size = 224\n')
    recipe = resolve(load_settings(file, {}), export_of(**KNOWN), Facts())
    assert recipe.preprocess.size == (224, 224)
    assert len(recipe.notes) == 1


def test_class_names_that_contradict_the_file_are_refused() -> None:
    with pytest.raises(ClassesMismatch, match=r"lists b, a, but the file itself says a, b: take classes out"):
        completed(export_of(**KNOWN), classes=("b", "a"))


def test_without_class_names_the_error_says_how_many_are_to_be_listed() -> None:
    with pytest.raises(ClassesMismatch, match=r"has 2 outputs and does not say their names: list all 2"):
        completed(Checkpoint(Path("x"), "zip", {}, mmap.mmap(-1, 1)))


def test_unreproduced_transforms_are_refused_until_the_settings_name_a_pipeline() -> None:
    with pytest.raises(CheckpointError, match=r"it uses CropPad, which is not reproduced\. Set item_tfms"):
        completed(export_of("it uses CropPad, which is not reproduced", **KNOWN))
    recipe = completed(export_of("it uses CropPad, which is not reproduced", **KNOWN), pipeline="resize")
    assert recipe.preprocess.words == ("Resize(192)",)


def test_a_file_cannot_exceed_the_range_of_a_setting() -> None:
    with pytest.raises(SettingsError, match="The checkpoint says threshold is 7"):
        completed(export_of(**KNOWN, threshold=7.0))


def test_a_network_of_one_size_gets_it() -> None:
    recipe = completed(export_of(classes=("a", "b")), size=(224, 224))
    assert recipe.preprocess.size == (224, 224)
    with pytest.raises(CheckpointError, match="pictures of 224 x 224 px only"):
        completed(export_of(classes=("a", "b")), size=(224, 224), image_size=(192, 192))


def test_the_settings_that_inspect_prints_serve_the_file(tmp_path: Path) -> None:
    done = run_app("inspect", str(V1_CHECKPOINT))
    assert done.returncode == 0
    assert "squeezenet1_1" in done.stdout and "fastai v1" in done.stdout
    file = tmp_path / "settings.toml"
    file.write_text(done.stdout.partition("# settings.toml\n")[2])
    assert opened(load_settings(file, {})).card.preprocess.transforms == named("fastai1").words


def test_inspect_says_all_of_an_export_to_programs() -> None:
    report = json.loads(run_app("inspect", "--json", str(V1_EXPORT)).stdout)
    assert (report["architecture"], report["classes"], report["served"]) == (
        "squeezenet1_1",
        list(BEARS),
        True,
    )
    assert report["transforms"]["ds_tfms"] == "get_transforms(), size=224"
    assert "classes" not in tomllib.loads(report["settings"])


def test_inspect_says_why_a_file_is_not_served() -> None:
    done = run_app("inspect", str(DATA / "v1" / "squished.pkl"))
    assert done.returncode == 1
    assert "no. The tensors in the file fit none" in done.stdout


def test_inspect_names_a_file_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"<html>Sign in</html>")
    done = run_app("inspect", str(tmp_path / "x"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "is a web page" in done.stderr


class Small(torch.nn.Module):
    """A classifier of two classes, for pictures of any size or of one."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 2, 3)
        self.softmax = softmax

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores = self.body(pixels).mean((2, 3))
        return scores.softmax(1) if self.softmax else scores


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_onnx_file_with_its_own_weights_is_served(tmp_path: Path, softmax: bool, one_by_one: bool) -> None:
    model, path = Small(softmax).eval(), tmp_path / "model.onnx"
    dynamic = None if one_by_one else ({0: torch.export.Dim.DYNAMIC},)
    pixels = torch.zeros(1 if one_by_one else 2, 3, 64, 64)
    torch.onnx.export(
        model, (pixels,), path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False
    )
    answers = ask(Settings(model_url=str(path), classes=("a", "b")), *(p.read_bytes() for p in IMAGES[:3]))
    predictor = opened(Settings(model_url=str(path), classes=("a", "b")))
    assert (predictor.card.architecture, predictor.card.preprocess.size) == ("ONNX", (64, 64))
    asked_for_fastai = opened(Settings(model_url=str(path), classes=("a", "b"), engine="fastai"))
    assert asked_for_fastai.card == predictor.card  # which has nothing to do here
    for photo, answer in zip(IMAGES[:3], answers, strict=True):
        with torch.no_grad():
            scores = Small.forward(
                model, torch.from_numpy(named("resize", (64, 64))(decode(photo.read_bytes())))[None]
            )
        expected = scores if softmax else scores.softmax(1)
        assert answer.confidence == pytest.approx(float(expected.max()), abs=1e-4)
    assert json.loads(run_app("inspect", "--json", str(path)).stdout)["outputs"] == 2


@pytest.mark.parametrize(("size", "resize"), [((64, 64), 64), ((64, 96), (64, 96))])
def test_a_classifier_of_ultralytics_gets_the_pixels_of_its_library(
    tmp_path: Path, size: tuple[int, int], resize: Any, vision: Any
) -> None:
    from torchvision import transforms

    model, path = Small(softmax=True).eval(), tmp_path / "best.onnx"
    program = torch.onnx.export(
        model, (torch.zeros(1, 3, *size),), dynamo=True, external_data=False, verbose=False
    )
    facts = {"author": "Ultralytics", "task": "classify", "imgsz": str([*size]), "names": "{0: 'a', 1: 'b'}"}
    program.model.metadata_props.update(facts)
    program.save(path)
    # as ultralytics 8.4 data/augment.py has it
    own = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()])
    settings = Settings(model_url=str(path), exif="ignore", pillow=PIL.__version__)
    for photo, answer in zip(IMAGES[::9], ask(settings, *(p.read_bytes() for p in IMAGES[::9])), strict=True):
        with torch.no_grad():
            expected = model(own(decode(photo.read_bytes(), "ignore"))[None])[0]
        assert answer.confidence == pytest.approx(float(expected.max()), abs=1e-5)


def test_the_page_names_the_classes_that_an_export_knows(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"model_url = {json.dumps(str(V1_EXPORT))}\n")
    server = start_server("--settings", str(file))
    server.wait_for("ready after")
    assert "Can tell apart: black, grizzly, teddys." in requests.get(server.url, timeout=SECONDS).text


def test_an_onnx_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12" + b"nonsense" * 20)
    with pytest.raises(CheckpointError, match="The file is damaged or not a checkpoint"):
        opened(Settings(model_url=str(tmp_path / "model.onnx"), classes=("a", "b")))


def test_a_network_without_a_shipped_graph_is_rebuilt_from_its_export_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.serving.rebuild.MODELS", tmp_path)
    export = DATA / "v1" / "squished.pkl"
    first = opened(Settings(model_url=str(export)))
    assert first.card.architecture.startswith("export-")
    arrays = read_checkpoint(export).arrays
    with torch.no_grad():
        squished = named("fastai1", (96, 128), (0.0,) * 3, (1.0,) * 3, method="squish")
        x = torch.from_numpy(squished(decode(IMAGES[0].read_bytes(), "ignore")))[None]
        for layer in ("0.0", "1.0", "2.0"):
            weight, bias = (torch.from_numpy(arrays[f"{layer}.{n}"].copy()) for n in ("weight", "bias"))
            x = torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=1).relu()
        expected = x.mean((2, 3)).softmax(1)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(path.suffix for path in made) == [".json", ".onnx"]
    (answer,) = ask(Settings(model_url=str(export), exif="ignore"), IMAGES[0].read_bytes())
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # it was not made again
    assert answer.confidence == pytest.approx(float(expected.max()), abs=1e-4)


def test_a_network_is_rebuilt_for_the_size_in_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.serving.rebuild.MODELS", tmp_path)
    export = str(DATA / "v1" / "squished.pkl")
    card = opened(Settings(model_url=export, image_size=(80, 64))).card
    assert card.preprocess.size == (80, 64)
    assert card.architecture.endswith("-80x64")  # another size has a graph of its own


def test_a_network_with_tensorflows_padding_is_rebuilt_for_one_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vision: Any
) -> None:
    from timm.layers.conv2d_same import Conv2dSame

    monkeypatch.setattr("app.serving.rebuild.MODELS", tmp_path)
    dls = vision.ImageDataLoaders.from_lists(
        tmp_path, IMAGES[:6], list("ababab"), item_tfms=vision.Resize(70), bs=2, num_workers=0
    )
    layers = [Conv2dSame(side, 8, 3, stride=2) for side in (3, 8, 8, 8, 8)]
    model = torch.nn.Sequential(
        *layers, vision.AdaptiveConcatPool2d(), vision.Flatten(), vision.nn.Linear(16, 2)
    )
    learn = vision.Learner(dls, model)
    learn.export(tmp_path / "export.pkl")
    settings = Settings(model_url=str(tmp_path / "export.pkl"), exif="ignore", pillow=PIL.__version__)
    for photo, answer in zip(
        IMAGES[:9:3], ask(settings, *(p.read_bytes() for p in IMAGES[:9:3])), strict=True
    ):
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(photo)[2]
        assert answer.confidence == pytest.approx(float(expected.max()), abs=1e-5)


def test_an_onnx_file_that_cannot_compute_pictures_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"  # for four pictures at once
    torch.onnx.export(
        Small(False).eval(),
        (torch.zeros(4, 3, 64, 64),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    with pytest.raises(CheckpointError, match="cannot run the file on two pictures of 64 x 64 px"):
        opened(Settings(model_url=str(path), classes=("a", "b")))

"""From settings to an answer, and the sentences about files that cannot be served."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.checkpoints.reader import read_checkpoint
from app.errors import (
    BadOutput,
    CheckpointError,
    ClassesMismatch,
    SettingsError,
    UnsupportedMedia,
)
from app.serving.predictor import Prediction, Predictor
from app.settings import Settings
from tests.conftest import BEARS, ENGINES, IMAGES, V1_CHECKPOINT, image_bytes, named, open_predictor


def bears_settings(**changes: Any) -> Settings:
    return Settings(**{"model_url": str(V1_CHECKPOINT), "classes": BEARS, "exif": "ignore", **changes})


def opened(settings: Settings, phases: list[str] | None = None) -> Predictor:
    def report(phase: str, percent: int | None) -> None:
        if phases is not None:
            phases.append(phase)

    return asyncio.run(open_predictor(settings, report))


def ask(settings: Settings, *photos: bytes) -> list[Prediction]:
    async def scenario() -> list[Prediction]:
        predictor = await open_predictor(settings)
        answers = await asyncio.gather(*(predictor.predict(photo) for photo in photos))
        await predictor.close()
        return answers

    return asyncio.run(scenario())


def damaged(tmp_path: Path, change: Any) -> str:
    import torch

    state = torch.load(V1_CHECKPOINT, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "stage-2.pth")
    return str(tmp_path / "stage-2.pth")


def test_people_read_the_labels(v1_predictions: dict[str, np.ndarray]) -> None:
    labels = ("Schwarzbär", "Grizzlybär", "Plüschbär")
    settings = bears_settings(labels=labels)

    async def scenario() -> None:
        predictor = await open_predictor(settings)
        photo = IMAGES[0].read_bytes()
        answer, explained = await predictor.predict(photo), await predictor.explain(photo, label=labels[2])
        await predictor.close()
        expected = dict(zip(labels, v1_predictions[IMAGES[0].name], strict=True))
        assert {each.label: each.score for each in answer.predictions} == pytest.approx(expected, abs=1e-3)
        assert answer.result == max(expected, key=expected.__getitem__)
        assert explained.label == labels[2]
        assert predictor.card.classes == labels

    asyncio.run(scenario())


def test_as_many_labels_as_classes_are_wanted_each_once() -> None:
    with pytest.raises(SettingsError, match=r"labels has 2 names, but there are 3 classes \(.*\): list one"):
        ask(bears_settings(labels=("a", "b")))


def test_answers_name_every_class_the_likeliest_first(v1_predictions: dict[str, np.ndarray]) -> None:
    photos = IMAGES[:8]
    for photo, answer in zip(photos, ask(bears_settings(), *(p.read_bytes() for p in photos)), strict=True):
        expected = v1_predictions[photo.name]
        assert answer.result == BEARS[expected.argmax()] == answer.predictions[0].label
        assert answer.confidence == answer.predictions[0].score == pytest.approx(expected.max(), abs=1e-4)
        assert {score.label for score in answer.predictions} == set(BEARS)
        assert [score.score for score in answer.predictions] == sorted(expected_scores(answer), reverse=True)


def expected_scores(answer: Prediction) -> list[float]:
    return [score.score for score in answer.predictions]


def test_an_answer_below_the_threshold_is_unsure() -> None:
    photo = image_bytes("a02_225x223.jpg")  # its best class has 0.43
    assert [a.unsure for a in ask(bears_settings(unsure_below=0.5), photo)] == [True]
    assert [a.unsure for a in ask(bears_settings(unsure_below=0.4), photo)] == [False]


def test_a_phone_photo_is_turned_unless_fastais_answer_is_wanted() -> None:
    photo = image_bytes("i06_exif6_stored.jpg")
    turned, ignored = ask(bears_settings(exif="turn"), photo), ask(bears_settings(), photo)
    assert turned != ignored


def test_the_phases_of_opening_are_reported_in_order() -> None:
    phases: list[str] = []
    opened(bears_settings(), phases)
    assert phases == ["reading", "building", "warming up"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_card_describes_the_model(engine: Any) -> None:
    card = opened(bears_settings(engine=engine)).card
    assert (card.architecture, card.fastai, card.container) == ("squeezenet1_1", 1, "legacy")
    assert (card.preprocess.transforms, card.classes) == (named("fastai1").words, BEARS)
    assert card.bytes == V1_CHECKPOINT.stat().st_size
    assert ("torch" in card.versions) == (engine == "fastai")
    assert json.loads(msgspec.json.encode(card))["versions"] == card.versions


def resident(path: Path) -> int:
    """kB of a mapped file that this process has in memory (Linux only)."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("what of a mapped file is in memory cannot be measured here")
    found = re.search(rf" {re.escape(str(path))}\nSize:.*?^Rss: +(\d+) kB", maps.read_text(), re.M | re.S)
    return int(found[1]) if found else 0


def test_the_file_does_not_stay_in_memory_beside_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    path.write_bytes(V1_CHECKPOINT.read_bytes())
    checkpoint = read_checkpoint(path)
    read = sum(array.nbytes for array in checkpoint.arrays.values() if np.isfinite(array).all())
    assert resident(path) > 0.9 * read / 1024
    del checkpoint
    predictor = opened(bears_settings(model_url=str(path)))
    assert resident(path) < 100
    asyncio.run(predictor.close())


@pytest.mark.torch
def test_both_engines_give_the_same_answer() -> None:
    photo = image_bytes("a05_640x480.jpg")
    (ours,), (theirs,) = ask(bears_settings(), photo), ask(bears_settings(engine="fastai"), photo)
    assert ours.result == theirs.result
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def test_a_pipeline_that_is_said_is_used() -> None:
    assert opened(bears_settings(pipeline="resize")).card.preprocess.transforms == ("Resize(224)",)
    assert opened(bears_settings(image_size=(192, 256))).card.preprocess.size == (192, 256)


def test_a_method_that_random_resized_crop_does_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="resize_method is 'pad', but RandomResizedCrop has no method"):
        opened(bears_settings(pipeline="random_resized_crop", resize_method="pad"))


@pytest.mark.parametrize("engine", ENGINES)
def test_with_multi_label_every_class_is_judged_by_itself(engine: Any) -> None:
    photo = image_bytes("a01_223x225.jpg")
    (single,) = ask(bears_settings(), photo)
    (multi,) = ask(bears_settings(engine=engine, multi_label=True, threshold=0.5), photo)
    scores = {row.label: row.score for row in multi.predictions}
    odds = {label: score / (1 - score) for label, score in scores.items()}  # softmax's exponentials
    for row in single.predictions:
        assert odds[row.label] / sum(odds.values()) == pytest.approx(row.score, rel=1e-3)
    assert multi.result == ";".join(row.label for row in multi.predictions if row.score >= 0.5)


def test_a_class_counts_from_the_threshold_on() -> None:
    photo = image_bytes("a01_223x225.jpg")
    (answer,) = ask(bears_settings(multi_label=True), photo)
    (edge,) = ask(bears_settings(multi_label=True, threshold=answer.predictions[1].score), photo)
    assert edge.result == ";".join(row.label for row in answer.predictions[:2])


@pytest.mark.fault("M18")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d")])
def test_a_class_list_of_the_wrong_length_is_refused(classes: tuple[str, ...], engine: Any) -> None:
    message = f"has 3 outputs, the setting classes lists {len(classes)} names .*learn.dls.vocab"
    with pytest.raises(ClassesMismatch, match=message):
        opened(bears_settings(classes=classes, engine=engine))


@pytest.mark.fault("M19")
def test_a_class_list_out_of_order_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    opened(bears_settings())
    assert "alphabetical" not in caplog.text
    opened(bears_settings(classes=("grizzly", "black", "teddys")))
    assert "not in alphabetical order" in caplog.text


@pytest.mark.fault("M20")
def test_the_file_decides_the_architecture_and_a_wrong_setting_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert opened(bears_settings(architecture="resnet18")).card.architecture == "squeezenet1_1"
    assert "architecture is resnet18, but the file is squeezenet1_1" in caplog.text


@pytest.mark.fault("M21")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.torch
def test_weights_that_are_nan_are_refused(tmp_path: Path, value: float) -> None:
    path = damaged(tmp_path, lambda state: state["0.0.0.weight"].fill_(value))
    with pytest.raises(CheckpointError, match=r"NaN or infinite.*before it did"):
        opened(bears_settings(model_url=path))


@pytest.mark.torch
def test_weights_that_are_too_large_to_compute_with_are_refused_at_the_warm_up(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda state: state["0.0.0.weight"].mul_(3e37))
    with pytest.raises(CheckpointError, match="produces NaN or infinite scores for a black image"):
        opened(bears_settings(model_url=path))


@pytest.mark.fault("M21")
@pytest.mark.torch
def test_a_picture_with_a_nan_answer_fails_alone(tmp_path: Path) -> None:
    # finite for the black picture of the warm-up, beyond float32 for a bright one
    path = damaged(tmp_path, lambda state: state["0.0.0.weight"].mul_(3e37))
    black, bright = (bytes_of(color) for color in ("black", "white"))
    ask(bears_settings(model_url=path, mean=(0.0, 0.0, 0.0)), black)
    with pytest.raises(BadOutput):
        ask(bears_settings(model_url=path, mean=(0.0, 0.0, 0.0)), bright)


@pytest.mark.fault("L06")
@pytest.mark.torch
def test_in_a_batch_too(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda state: state["0.0.0.weight"].mul_(3e37))
    black, bright = (bytes_of(color) for color in ("black", "white"))

    async def scenario() -> list[Any]:
        settings = bears_settings(model_url=path, mean=(0.0, 0.0, 0.0))
        predictor = await open_predictor(settings)
        photos = [black, black, bright, b"no picture", *[black] * 6]
        answers = await asyncio.gather(*map(predictor.predict, photos), return_exceptions=True)
        await predictor.close()
        return answers

    answers = asyncio.run(scenario())
    assert isinstance(answers.pop(3), UnsupportedMedia)
    assert isinstance(answers.pop(2), BadOutput)
    assert all(isinstance(answer, Prediction) for answer in answers)


def bytes_of(color: str) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (224, 224), color).save(buffer, "PNG")
    return buffer.getvalue()

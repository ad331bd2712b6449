"""The server predicts as the notebook does: fastai's own `predict` is the oracle, picture by picture."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from app.checkpoints.reader import read_checkpoint
from app.engines.contract import fitted
from app.engines.learner import LearnerEngine
from app.engines.onnx_runtime import GraphEngine
from app.graphs.graph import find_graph
from app.photos.decode import decode
from app.photos.notebook import read_fastai
from app.photos.transforms import Preprocess
from app.serving.recognize import recognize
from tests.conftest import BEARS, DATA, IMAGES, NEWEST_PILLOW, V1_CHECKPOINT, named

# one picture of each kind; the rest goes through every architecture and pipeline in `make test-all`
TELLING = [
    photo
    for photo in IMAGES
    if photo.name[:3]
    in ("a02", "a05", "a16", "c00", "c03", "d00", "e00", "f03", "g02", "h00", "i06", "j02", "k01", "k02")
]
REST = [photo for photo in IMAGES if photo not in TELLING]
BAR = 1e-3  # the largest difference of any probability of any picture
HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PIPELINES: dict[str, tuple[str, dict[str, Any], Preprocess]] = {
    "crop": ("Resize", {}, named()),
    "squish": ("Resize", {"method": "squish"}, named(method="squish")),
    "pad": ("Resize", {"method": "pad"}, named(method="pad")),
    "zeros": ("Resize", {"method": "pad", "pad_mode": "zeros"}, named(method="pad", pad_mode="zeros")),
    "oblong": ("Resize", {"size": (192, 256)}, named(size=(192, 256))),
    "random_resized_crop": ("RandomResizedCrop", {}, named("random_resized_crop")),
    "wide margin": ("RandomResizedCrop", {"val_xtra": 0.3}, named("random_resized_crop", val_xtra=0.3)),
    "presize": ("Resize", {"size": 460, "batch_size": 224}, named("presize")),
    "presize squished": (
        "Resize",
        {"size": 320, "method": "squish", "batch_size": (192, 256)},
        named("presize", (192, 256), method="squish", presize=(320, 320)),
    ),
    "own statistics": ("Resize", {"stats": HALF}, named(mean=HALF[0], std=HALF[1])),
    "not normalized": ("Resize", {"stats": None}, named(mean=(0, 0, 0), std=(1, 1, 1))),
}


def served(path: Path, preprocess: Preprocess, architecture: str = "") -> Callable[[Path], np.ndarray]:
    """The way of a picture through the engine, from a file that fastai saved."""
    arrays = read_checkpoint(path).arrays
    graph = find_graph(arrays, architecture)
    engine = GraphEngine(fitted(graph, arrays))
    return lambda photo: engine.run([preprocess(decode(photo.read_bytes(), "ignore"))])[0].probabilities


def assert_agree(
    ours: Callable[[Path], np.ndarray], notebook: Callable[[Path], np.ndarray], photos: Sequence[Path]
) -> None:
    """On every picture: the same class, and every probability within the bar."""
    rows = [(photo.name, ours(photo), notebook(photo)) for photo in photos]
    assert [name for name, mine, theirs in rows if mine.argmax() != theirs.argmax()] == []
    worst = max(rows, key=lambda row: float(np.abs(row[1] - row[2]).max()))
    assert np.abs(worst[1] - worst[2]).max() <= BAR, worst
    assert np.median([theirs.max() for _, _, theirs in rows]) < 0.99, "saturated: it would hide differences"


@functools.cache
def predict(learn: Any) -> Callable[[Path], np.ndarray]:
    """Return a function from a photo to the notebook's prediction; each is computed once."""

    @functools.cache
    def ask(photo: Path) -> np.ndarray:
        with learn.no_bar(), learn.no_logging():
            return learn.predict(photo)[2].numpy()  # type: ignore[no-any-return]

    return ask


# the families that people deploy; all others are compared with torch, pixels to logits, in test_graphs
DEPLOYED = (
    "densenet121",
    "resnet18",
    "resnet34",
    "resnet50",
    "squeezenet1_1",
    "tf_efficientnet_lite0",
    "xresnet18",
)


def in_parts(names: Sequence[str]) -> list[Any]:
    """Parameters: each name with the telling pictures, and with the rest where everything is tried.

    squeezenet1_1 goes through all of them always.
    """
    part = [pytest.param(name, TELLING, id=name) for name in names]
    marks = {name: () if name == "squeezenet1_1" else pytest.mark.exhaustive for name in names}
    return part + [pytest.param(name, REST, id=f"{name}, the rest", marks=marks[name]) for name in names]


def test_the_pictures_are_the_61_of_their_list() -> None:
    assert (len(TELLING), len(REST)) == (14, 47)


@pytest.mark.parametrize(("architecture", "photos"), in_parts(DEPLOYED))
def test_each_deployed_architecture_answers_as_fastai_v2_predicts(
    architecture: str, photos: list[Path], make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = learner_of("crop", architecture, make_learner, vision)
    path = learn.save("stage-2", with_opt=False)
    assert_agree(served(path, named(), architecture), predict(learn), photos)


@functools.cache
def learner_of(pipeline: str, architecture: str, make_learner: Callable[..., Any], vision: Any) -> Any:
    """A learner with the transforms of a pipeline, as a notebook writes them."""
    name, options, _ = PIPELINES[pipeline]
    own = {key: options[key] for key in ("stats", "batch_size") if key in options}
    item = {key: value for key, value in options.items() if key not in own}
    return make_learner(architecture, getattr(vision, name)(**{"size": 224, **item}), **own)


@pytest.mark.parametrize(("pipeline", "photos"), in_parts([name for name in PIPELINES if name != "crop"]))
def test_each_pipeline_answers_as_fastai_v2_predicts(
    pipeline: str, photos: list[Path], make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = learner_of(pipeline, "squeezenet1_1", make_learner, vision)
    path = learn.save("stage-2", with_opt=False)
    assert_agree(served(path, PIPELINES[pipeline][2]), predict(learn), photos)


def test_v1_files_answer_as_fastai_v1_predicted(v1_predictions: dict[str, np.ndarray]) -> None:
    ours = served(V1_CHECKPOINT, named("fastai1"))
    for photo in IMAGES:
        mine, theirs = ours(photo), v1_predictions[photo.name]
        assert mine.argmax() == theirs.argmax(), photo.name
        assert np.abs(mine - theirs).max() <= 3e-5, photo.name


@pytest.mark.torch
def test_the_fastai_engine_answers_as_fastai_v1_predicted(v1_predictions: dict[str, np.ndarray]) -> None:
    engine = LearnerEngine(recognize(read_checkpoint(V1_CHECKPOINT)), BEARS)
    prepare, run = engine.bind(named("fastai1"))
    for photo in IMAGES:
        (mine,) = run([prepare(decode(photo.read_bytes(), "ignore"))])
        assert np.abs(mine.probabilities - v1_predictions[photo.name]).max() <= 3e-5, photo.name


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_fastai_engine_answers_as_the_notebooks_learner(
    pipeline: str, make_learner: Callable[..., Any], vision: Any
) -> None:
    preprocess = PIPELINES[pipeline][2]
    learn = learner_of(pipeline, "squeezenet1_1", make_learner, vision)
    network = recognize(read_checkpoint(learn.save("stage-2", with_opt=False)))
    prepare, run = LearnerEngine(network, BEARS).bind(preprocess)
    photos = TELLING
    answers = run([prepare(decode(photo.read_bytes(), "ignore")) for photo in photos])
    for photo, mine in zip(photos, answers, strict=True):
        assert np.abs(mine.probabilities - predict(learn)(photo)).max() <= 1e-4, (
            photo.name
        )  # a batch is summed otherwise


def test_a_batch_answers_as_its_photos_alone(make_learner: Callable[..., Any], vision: Any) -> None:
    path = make_learner("resnet18", vision.Resize(224)).save("stage-2", with_opt=False)
    arrays = read_checkpoint(path).arrays
    graph = find_graph(arrays)
    engine = GraphEngine(fitted(graph, arrays))
    pixels = [named()(decode(photo.read_bytes())) for photo in IMAGES[:5]]
    for together, one in zip(engine.run(pixels), pixels, strict=True):
        (alone,) = engine.run([one])
        np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=1e-5)
        np.testing.assert_allclose(together.features, alone.features, atol=1e-4)


@pytest.mark.parametrize("newest", [False, True])
def test_the_fastai_engine_rounds_as_the_pillow_of_the_notebook(
    newest: bool, make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = learner_of("squish", "squeezenet1_1", make_learner, vision)
    network = recognize(read_checkpoint(learn.save("stage-2", with_opt=False)))
    preprocess = replace(named(method="squish"), newest_pillow=newest)
    tall = decode((DATA / "images" / "c01_tall_200x1600.jpg").read_bytes(), "ignore")
    prepare, run = LearnerEngine(network, BEARS).bind(preprocess)
    _, compute = GraphEngine(network).bind(preprocess)
    (found,), (expected,) = run([prepare(tall)]), compute([preprocess(tall)])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    other = replace(preprocess, newest_pillow=not newest)
    assert np.abs(compute([other(tall)])[0].probabilities - found.probabilities).max() > 1e-4


def test_the_fastai_engine_keeps_two_transforms_of_one_class(
    make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = learner_of("crop", "squeezenet1_1", make_learner, vision)
    network = recognize(read_checkpoint(learn.save("stage-2", with_opt=False)))
    steps = read_fastai("Resize(230)", "[Rotate(10, size=160), Zoom(size=128)]")[0]
    preprocess = Preprocess(steps, newest_pillow=NEWEST_PILLOW)
    photo = decode(TELLING[1].read_bytes(), "ignore")
    prepare, run = LearnerEngine(network, BEARS).bind(preprocess)
    (found,), (expected,) = run([prepare(photo)]), GraphEngine(network).run([preprocess(photo)])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)

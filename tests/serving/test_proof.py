"""The proof: it passes what agrees, and where a setting is wrong it refuses and names that setting."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.checkpoints.reader import read_checkpoint
from app.errors import ProofError
from app.photos.decode import decode
from app.serving.predictor import Predictor
from app.serving.proof import TOLERANCE, read_proof
from app.serving.recognize import recognize
from app.settings import Settings
from tests.conftest import (
    BEARS,
    DATA,
    ENGINES,
    V1_CHECKPOINT,
    bears_environment,
    named,
    open_predictor,
    run_app,
)

pytestmark = pytest.mark.slow

# pictures of many shapes, one of them turned by its EXIF data
NAMES = (
    "a03_300x200.jpg",
    "a15_1280x720.jpg",
    "a16_720x1280.jpg",
    "a13_768x1024.jpg",
    "c04_3to1_900x300.jpg",
    "d05_small_120x160.jpg",
    "i06_exif6_stored.jpg",
    "i08_exif8_stored.jpg",
)


def write_proof(folder: Path, predictions: dict[str, np.ndarray], classes: tuple[str, ...] = BEARS) -> str:
    photos = [
        {
            "name": name,
            "photo": base64.b64encode((DATA / "images" / name).read_bytes()).decode(),
            "probabilities": predictions[name].tolist(),
        }
        for name in NAMES
    ]
    path = folder / "proof.json"
    path.write_text(json.dumps({"classes": classes, "photos": photos}))
    return str(path)


@pytest.fixture
def proof(tmp_path: Path, v1_predictions: dict[str, np.ndarray]) -> str:
    """What fastai 1.0.50 said of these pictures."""
    return write_proof(tmp_path, v1_predictions)


def opened(proof: str, **changes: Any) -> Predictor:
    settings = {
        "model_url": str(V1_CHECKPOINT),
        "classes": BEARS,
        "exif": "ignore",
        "proof_url": proof,
        **changes,
    }
    return asyncio.run(open_predictor(Settings(**settings)))


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_that_agree_are_served_and_the_card_says_how_well(proof: str, engine: Any) -> None:
    result = opened(proof, engine=engine).card.proof
    assert result is not None
    assert (result.photos, result.flips) == (len(NAMES), 0)
    assert result.worst_difference <= 1e-4
    assert result.worst_photo in NAMES


def test_the_proof_has_the_classes_of_the_notebook_not_the_labels(proof: str) -> None:
    card = opened(proof, labels=("Schwarzbär", "Grizzlybär", "Plüschbär")).card
    assert card.proof is not None
    assert card.classes == ("Schwarzbär", "Grizzlybär", "Plüschbär")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_photo_of_the_proof_is_wholly_familiar_and_another_less(proof: str, engine: Any) -> None:
    predictor = opened(proof, unfamiliar_below=0.999, engine=engine)

    async def ask(name: str) -> Any:
        return await predictor.predict((DATA / "images" / name).read_bytes())

    known, other = (asyncio.run(ask(name)) for name in (NAMES[0], "f02_1bit_400x300.png"))
    assert known.familiarity == pytest.approx(1, abs=1e-5)
    assert not known.unsure
    assert other.familiarity < 0.999
    assert other.unsure


@pytest.mark.torch
def test_familiarity_is_the_cosine_of_the_features_that_torch_computes(proof: str) -> None:
    import torch

    from app.engines.learner import rebuild

    photo = (DATA / "images" / "a00_224x224.jpg").read_bytes()
    model = rebuild(recognize(read_checkpoint(V1_CHECKPOINT)))

    def features(data: bytes) -> Any:
        with torch.no_grad():
            pixels = torch.from_numpy(named("fastai1")(decode(data, "ignore")))[None]
            return model[1][:2](model[0](pixels))

    known = [features((DATA / "images" / name).read_bytes()) for name in NAMES]
    expected = max(float(torch.cosine_similarity(features(photo), one)) for one in known)
    answer = asyncio.run(opened(proof).predict(photo))
    assert answer.familiarity == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"exif": "turn"}, 'exif = "ignore"'),
        ({"pipeline": "resize"}, 'pipeline = "fastai1" and resize_method = "crop"'),
        ({"pipeline": "random_resized_crop"}, 'pipeline = "fastai1" and resize_method = "crop"'),
        ({"resize_method": "squish"}, 'pipeline = "fastai1" and resize_method = "crop"'),
        (
            {"mean": (0, 0, 0), "std": (1, 1, 1)},
            r"mean = [0.485, 0.456, 0.406] and std = [0.229, 0.224, 0.225]",
        ),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, r"mean = [0.485, 0.456, 0.406]"),
        ({"image_size": (128, 128)}, "image_size = 224"),
        ({"image_size": (299, 299)}, "image_size = 224"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_and_named(proof: str, broken: dict[str, Any], named: str) -> None:
    with pytest.raises(ProofError) as caught:
        opened(proof, **broken)
    message = str(caught.value)
    assert f"With {named}" in message
    assert "all agree: put that into the settings." in message
    assert any(f"The worst is {name}: there" in message for name in NAMES)


def undecided(predictor: Predictor) -> list[tuple[bytes, np.ndarray]]:
    """Two pictures that hardly differ and have different classes, each with its probabilities."""
    ends = [Image.open(DATA / "images" / name).resize((224, 224)) for name in ("a05_640x480.jpg", NAMES[3])]

    def blended(share: float) -> tuple[bytes, np.ndarray]:
        file = io.BytesIO()
        Image.blend(*ends, share).save(file, "PNG")
        answer = asyncio.run(predictor.predict(file.getvalue()))
        scores = {score.label: score.score for score in answer.predictions}
        return file.getvalue(), np.array([scores[name] for name in BEARS])

    low, high = 0.0, 1.0
    first = blended(low)[1].argmax()
    assert blended(high)[1].argmax() != first
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if blended(middle)[1].argmax() == first else (low, middle)
    return [blended(low), blended(high)]


def test_another_class_is_refused_even_within_the_tolerance(proof: str) -> None:
    (photo, ours), (_, notebook) = undecided(opened(proof))
    assert np.abs(ours - notebook).max() < TOLERANCE
    document = json.loads(Path(proof).read_text())
    encoded = base64.b64encode(photo).decode()
    document["photos"] = [{"name": "edge.png", "photo": encoded, "probabilities": notebook.tolist()}]
    Path(proof).write_text(json.dumps(document))
    with pytest.raises(ProofError, match="1 of 1 photos get another class"):
        opened(proof)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (
            {"resize_method": "squish", "mean": (0, 0, 0), "std": (1, 1, 1)},
            'pipeline = "fastai1" and resize_method = "crop" and mean = [0.485, 0.456, 0.406]',
        ),
        ({"exif": "turn", "image_size": (160, 160)}, 'exif = "ignore" and image_size = 224'),
    ],
    ids=["pipeline and statistics", "EXIF and size"],
)
def test_two_wrong_settings_are_named_together(proof: str, broken: dict[str, Any], named: str) -> None:
    with pytest.raises(ProofError) as caught:
        opened(proof, **broken)
    assert f"With {named}" in str(caught.value)


def test_raw_scores_of_a_notebook_are_compared_as_probabilities(
    tmp_path: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    scores = {name: np.log(row) * 1.0 + 3 for name, row in v1_predictions.items()}  # what softmax turns back
    result = opened(write_proof(tmp_path, scores)).card.proof
    assert result is not None
    assert (result.flips, result.worst_difference <= 1e-4) == (0, True)


@pytest.mark.parametrize("missing", ["resize", "squish", "pad", "random_resized_crop", "presize", "nothing"])
def test_each_pipeline_of_v2_is_named_when_another_is_served(
    missing: str, tmp_path: Path, make_learner: Callable[..., Any], vision: Any
) -> None:
    transform, options, setting = {
        "resize": (vision.Resize(224), {}, 'pipeline = "resize" and resize_method = "crop"'),
        "squish": (
            vision.Resize(224, method="squish"),
            {},
            'pipeline = "resize" and resize_method = "squish"',
        ),
        "pad": (vision.Resize(224, method="pad"), {}, 'pipeline = "resize" and resize_method = "pad"'),
        "random_resized_crop": (vision.RandomResizedCrop(224), {}, 'pipeline = "random_resized_crop"'),
        "presize": (
            vision.Resize(460),
            {"batch_size": 224},
            'pipeline = "presize" and resize_method = "crop"',
        ),
        "nothing": (vision.Resize(224), {"stats": None}, "mean = [0.0, 0.0, 0.0] and std = [1.0, 1.0, 1.0]"),
    }[missing]
    learn = make_learner("squeezenet1_1", transform, **options)
    with learn.no_bar(), learn.no_logging():
        said = {name: learn.predict(DATA / "images" / name)[2].numpy() for name in NAMES}
    served = "random_resized_crop" if missing == "resize" else "resize"
    with pytest.raises(ProofError) as caught:
        opened(
            write_proof(tmp_path, said),
            model_url=str(learn.save("stage-2", with_opt=False)),
            pipeline=served,
            resize_method="pad" if missing == "squish" else "crop",
        )
    assert f"With {setting}" in str(caught.value)


def test_classes_in_another_order_than_the_notebooks_are_refused_with_the_right_line(proof: str) -> None:
    with pytest.raises(ProofError, match=r'in this order: classes = \["black","grizzly","teddys"\]'):
        opened(proof, classes=("grizzly", "black", "teddys"))


def test_a_checkpoint_that_was_trained_in_another_order_is_named(
    tmp_path: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    rotated = {name: np.roll(row, 1) for name, row in v1_predictions.items()}
    with pytest.raises(ProofError, match="With the classes in another order all agree"):
        opened(write_proof(tmp_path, rotated))


def test_no_order_of_the_classes_is_named_where_two_of_them_look_alike(
    tmp_path: Path, make_learner: Callable[..., Any], vision: Any
) -> None:
    """The checkpoint's first two classes are both nearest to the proof's first."""
    learn = make_learner("squeezenet1_1", vision.Resize(224))
    last = learn.model[-1][-1]
    last.weight.data[1] = last.weight.data[0]
    with learn.no_bar(), learn.no_logging():
        said = {name: learn.predict(DATA / "images" / name)[2].numpy()[[0, 2, 1]] for name in NAMES}
    with pytest.raises(ProofError) as caught:
        opened(
            write_proof(tmp_path, said),
            model_url=str(learn.save("stage-2", with_opt=False)),
        )
    assert "in another order" not in str(caught.value)


def test_a_proof_of_another_training_is_refused_without_a_guess(
    tmp_path: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    others = {name: np.array([0.2, 0.5, 0.3], np.float32) for name in v1_predictions}
    with pytest.raises(ProofError, match="Neither one setting nor two make them agree"):
        opened(write_proof(tmp_path, others))


def test_the_server_ends_with_the_sentence_and_exit_code_1(proof: str) -> None:
    ended = run_app(
        "serve",
        "--port",
        "0",
        **bears_environment(APP_PROOF_URL=proof, APP_IMAGE_SIZE="128", APP_EXIF="ignore"),
    )
    assert ended.returncode == 1
    (sentence,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "With image_size = 224 all agree" in sentence
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>", "not a proof.json as the notebook cell writes it"),
        ('{"classes": ["a", "b"], "photos": []}', "length >= 1"),
        (
            '{"classes": ["a"], "photos": [{"name": "x", "photo": "", "probabilities": [1, 0]}]}',
            "other than 1 prob",
        ),
        ('{"classes": ["a"], "photos": [{"name": "x", "photo": "?", "probabilities": [1]}]}', "base64"),
    ],
)
def test_what_is_no_proof_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content)
    with pytest.raises(ProofError, match=message):
        read_proof(path)


def test_a_photo_of_the_proof_that_cannot_be_read_is_named(
    tmp_path: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    path = Path(write_proof(tmp_path, v1_predictions))
    proof = json.loads(path.read_text())
    proof["photos"][1]["photo"] = base64.b64encode(b"no picture").decode()
    path.write_text(json.dumps(proof))
    with pytest.raises(ProofError, match=r"The photo a15_1280x720\.jpg of the proof cannot be used"):
        opened(str(path))


def test_a_proof_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    with path.open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(ProofError, match="over 50,000,000 bytes"):
        read_proof(path)

"""Figures about a labeled folder: against scikit-learn, and by way of the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

from app.commands.check import BINS, Evaluation, as_page
from tests.conftest import BEARS, DATA, IMAGES, bears_environment, run_app


def random_evaluation(photos: int = 500, classes: int = 4) -> Evaluation:
    """Answers that are right more often the more confident they are."""
    random = np.random.default_rng(5)
    probabilities = random.dirichlet(np.full(classes, 0.4), photos).astype(np.float32)
    truths = np.array([random.choice(classes, p=row / row.sum()) for row in probabilities.astype(float)])
    names = tuple("abcd"[:classes])
    return Evaluation(names, tuple(Path(f"{i}.jpg") for i in range(photos)), truths, probabilities)


def test_accuracy_confusion_recall_and_precision_are_scikit_learns() -> None:
    evaluation = random_evaluation()
    truths, answers = evaluation.truths, evaluation.answers
    assert evaluation.accuracy == pytest.approx(accuracy_score(truths, answers))
    np.testing.assert_array_equal(evaluation.confusion(), confusion_matrix(truths, answers))
    _, photos, recall, precision = zip(*evaluation.per_class(), strict=True)
    assert sum(photos) == 500
    assert recall == pytest.approx(recall_score(truths, answers, average=None))
    assert precision == pytest.approx(precision_score(truths, answers, average=None))


def test_the_calibration_error_is_that_of_its_definition() -> None:
    evaluation = random_evaluation()
    expected = 0.0
    for i in range(BINS):
        inside = (evaluation.confidences >= i / BINS) & (
            evaluation.confidences < (i + 1) / BINS + (i == BINS - 1)
        )
        if inside.any():
            gap = evaluation.right[inside].mean() - evaluation.confidences[inside].mean()
            expected += inside.mean() * abs(gap)
    assert evaluation.calibration_error() == pytest.approx(expected, abs=1e-6)


def test_the_suggested_threshold_keeps_as_many_answers_as_are_right_often_enough() -> None:
    evaluation = random_evaluation()
    threshold, share = evaluation.unsure_below()
    sure = evaluation.confidences >= threshold
    assert sure.mean() == pytest.approx(share)
    assert evaluation.right[sure].mean() >= 0.94
    lower = evaluation.confidences >= threshold - 0.05
    assert evaluation.right[lower].mean() < 0.95


def test_where_no_threshold_helps_none_is_suggested() -> None:
    evaluation = Evaluation(("a", "b"), (Path("x"),), np.array([0]), np.array([[0.1, 0.9]], np.float32))
    assert evaluation.unsure_below() == (1.0, 0.0)
    assert "no unsure_below makes 95%" in as_page(
        Evaluation(("a", "b"), (IMAGES[0],), np.array([0]), np.array([[0.1, 0.9]]))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy 24 pictures of bears, each into the folder of its class."""
    shown = {e["file"]: e["true"] for e in json.loads((DATA / "images.json").read_text())}
    for path in IMAGES[:24]:
        target = tmp_path / "photos" / shown[path.name]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "photos"


def test_check_prints_the_figures_of_fastai_v1s_answers(
    folder: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    photos = sorted(path for path in folder.rglob("*") if path.is_file())
    right = sum(BEARS[v1_predictions[path.name].argmax()] == path.parent.name for path in photos)
    ended = run_app("check", str(folder), **bears_environment(APP_EXIF="ignore"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{right / 24:.1%} of 24 photos are classified correctly\n")
    for part in ("calibration error", "unsure_below", "recall", "true \\ predicted", "worst mistakes"):
        assert part in ended.stdout


def test_check_writes_a_page_that_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    ended = run_app("check", str(folder), "--html", str(page), **bears_environment())
    assert ended.returncode == 0
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == text.count("<figure>") > 0
    assert "http" not in text
    assert "classified correctly" in text


def test_check_names_files_that_are_not_photos_and_leaves_them_out(folder: Path) -> None:
    (folder / "black" / "notes.txt").write_text("hello")
    ended = run_app("check", str(folder), **bears_environment())
    assert ended.returncode == 0
    assert "notes.txt is left out: No picture was recognized" in ended.stderr
    assert " of 24 photos" in ended.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "panda").mkdir(),
            "sub-folders panda, which are not classes; the classes are black",
        ),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: [shutil.rmtree(sub) for sub in folder.iterdir()], "has no photos"),
    ],
)
def test_a_folder_that_is_not_labeled_is_named(folder: Path, change: object, message: str) -> None:
    change(folder)  # type: ignore[operator]
    ended = run_app("check", str(folder), **bears_environment())
    assert ended.returncode == 1
    assert message in ended.stderr

"""`python -m app check`: evaluate the model on a folder of labeled photos, as text and as a page."""

import argparse
import asyncio
import base64
import html
import io
import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from PIL import Image

from app.errors import RequestError, StartupError, plain
from app.metrics import Metrics
from app.progress import show_progress
from app.serving.opening import open_model
from app.serving.predictor import Prediction, Predictor
from app.settings import Settings
from app.settings_file import load_settings
from app.types import Float32

# of the calibration error, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
BINS: Final = 15
WANTED: Final = 0.95  # the share of the sure answers that should be right
WORST: Final = 12
THUMBNAIL: Final = (160, 160)
TEMPLATE: Final = Path(__file__).parent / "report.html"


class Mistake(Struct, frozen=True):
    """A photo with a wrong answer."""

    path: Path
    truth: str
    answer: str
    confidence: float


class Evaluation(Struct, frozen=True):
    """The answers for a labeled folder.

    `truths` (N,) has the true classes, `probabilities` is (N, classes), `familiarity` (N,).
    """

    classes: tuple[str, ...]
    photos: tuple[Path, ...]
    truths: npt.NDArray[np.intp]
    probabilities: Float32
    familiarity: Float32 | None = None

    @property
    def answers(self) -> npt.NDArray[np.intp]:
        """Return the likeliest class of each photo, (N,)."""
        answers: npt.NDArray[np.intp] = np.argmax(self.probabilities, axis=1)
        return answers

    @property
    def confidences(self) -> Float32:
        """Return the probability of the likeliest class, (N,)."""
        return self.probabilities.max(axis=1)  # type: ignore[no-any-return]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Return whether each answer is the true class, (N,)."""
        return np.equal(self.answers, self.truths)

    @property
    def accuracy(self) -> float:
        """Return the share of right answers."""
        return float(self.right.mean())

    def confusion(self) -> npt.NDArray[np.intp]:
        """Return the number of photos of the row's class with the column's answer, (classes, classes)."""
        matrix = np.zeros((len(self.classes),) * 2, np.intp)
        np.add.at(matrix, (self.truths, self.answers), 1)
        return matrix

    def calibration_error(self) -> float:
        """Return the expected calibration error: the sum over bins of n / N * |accuracy - confidence|."""
        bins = np.minimum((self.confidences * BINS).astype(int), BINS - 1)
        gaps = (self.right - self.confidences)[:, None] * (bins[:, None] == np.arange(BINS))
        return float(np.abs(gaps.sum(axis=0)).sum() / len(bins))

    def unsure_below(self) -> tuple[float, float]:
        """Return the lowest threshold above which WANTED of the answers are right, and the share above it.

        (1.0, 0.0) if there is none.
        """
        order = np.argsort(-self.confidences, kind="stable")
        shares = np.cumsum(self.right[order]) / np.arange(1, len(order) + 1)
        enough = np.flatnonzero(shares >= WANTED)
        if not len(enough):
            return 1.0, 0.0
        # rounded down: the last answer that counts must stay sure
        threshold = np.floor(float(self.confidences[order[enough[-1]]]) * 1000) / 1000
        return float(threshold), float((self.confidences >= threshold).mean())

    def mistakes(self) -> list[Mistake]:
        """Return the wrong answers, the most confident first."""
        wrong = np.flatnonzero(~self.right)
        return [
            Mistake(
                self.photos[index],
                self.classes[self.truths[index]],
                self.classes[self.answers[index]],
                float(self.confidences[index]),
            )
            for index in wrong[np.argsort(-self.confidences[wrong], kind="stable")]
        ]

    def per_class(self) -> list[tuple[str, int, float, float]]:
        """Return (class, photos, recall, precision) of each class; NaN instead of a division by zero."""
        matrix = self.confusion()
        with np.errstate(invalid="ignore"):
            recall, precision = matrix.diagonal() / matrix.sum(axis=1), matrix.diagonal() / matrix.sum(axis=0)
        return [
            (name, int(matrix[i].sum()), float(recall[i]), float(precision[i]))
            for i, name in enumerate(self.classes)
        ]


def labeled_photos(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """The files in a folder with one sub-folder for each class, each with the index of its class.

    Raises StartupError if a sub-folder is not named after a class, or if there is no file.
    """
    if not folder.is_dir():
        raise StartupError(f"{folder} is not a folder; one with a sub-folder for each class was expected.")
    groups = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and not sub.name.startswith(".")]
    if unknown := [sub.name for sub in groups if sub.name not in classes]:
        raise StartupError(
            f"{folder} has the sub-folders {plain(', '.join(unknown))}, which are not classes; the classes "
            f"are {plain(', '.join(classes))}."
        )
    photos = [
        (path, classes.index(sub.name)) for sub in groups for path in sorted(sub.rglob("*")) if path.is_file()
    ]
    if not photos:
        raise StartupError(
            f"{folder} has no photos; it needs one sub-folder for each class, with photos in it."
        )
    return photos


def run(options: argparse.Namespace) -> int:
    """Print the figures about `options.folder`, and write the page `options.html`."""
    result = asyncio.run(_evaluate(options.folder, load_settings(options.settings)))
    print(as_text(result))
    if options.html:
        options.html.write_text(as_page(result), "utf-8")
        print(f"\n{options.html} shows the worst mistakes")
    return 0


async def _evaluate(folder: Path, settings: Settings) -> Evaluation:
    predictor = Predictor(await open_model(settings, show_progress), Metrics())
    try:
        if predictor.multi_label:
            raise StartupError(
                "check cannot evaluate a model with multi_label: it needs one right class for each photo."
            )
        return await evaluate(folder, predictor)
    finally:
        await predictor.close()


async def evaluate(folder: Path, predictor: Predictor) -> Evaluation:
    """Predict every photo of a labeled folder; a file that is not a photo is named and left out.

    Raises StartupError unless the folder is labeled by the classes and holds a photo.
    """
    classes = predictor.card.classes
    labeled = labeled_photos(folder, classes)
    answered: list[tuple[Path, int, Prediction]] = []
    for done, (path, truth) in enumerate(labeled):
        show_progress("checking", done * 100 // len(labeled))
        try:
            answered.append((path, truth, await predictor.predict(path.read_bytes())))
        except (RequestError, OSError) as error:
            print(f"{plain(path)} is left out: {error}", file=sys.stderr)
    show_progress("", None)
    if not answered:
        raise StartupError(f"None of the {len(labeled)} files in {folder} is a photo that can be read.")
    photos, truths, predictions = zip(*answered, strict=True)
    scores = [{row.label: row.score for row in prediction.predictions} for prediction in predictions]
    familiarity = [prediction.familiarity for prediction in predictions]
    return Evaluation(
        classes,
        photos,
        np.array(truths),
        np.array([[row[label] for label in classes] for row in scores], np.float32),
        None if None in familiarity else np.array(familiarity, np.float32),
    )


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as aligned columns: the first to the left, figures to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _class_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = [
        [name, str(n), _percentage(recall), _percentage(prec)]
        for name, n, recall, prec in evaluation.per_class()
    ]
    return [["class", "photos", "recall", "precision"], *rows]


def _confusion_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = zip(evaluation.classes, evaluation.confusion().astype(str).tolist(), strict=True)
    return [["true \\ predicted", *evaluation.classes], *([name, *row] for name, row in rows)]


def _percentage(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1%}"


def _headlines(evaluation: Evaluation) -> list[str]:
    threshold, share = evaluation.unsure_below()
    suggestion = (
        f"unsure_below = {threshold:.3f} leaves {share:.0%} of the answers sure, {WANTED:.0%} of them right"
        if share
        else f"no unsure_below makes {WANTED:.0%} of the sure answers right"
    )
    familiar = (
        f"unfamiliar_below = {np.quantile(evaluation.familiarity, 1 - WANTED):.3f} leaves {WANTED:.0%} of "
        "the answers sure"
        if evaluation.familiarity is not None
        else "set proof_url to get a suggestion for unfamiliar_below"
    )
    return [
        f"{evaluation.accuracy:.1%} of {len(evaluation.photos)} photos are classified correctly",
        f"calibration error (ECE, {BINS} bins): {evaluation.calibration_error():.3f}",
        suggestion,
        familiar,
    ]


def as_text(evaluation: Evaluation) -> str:
    """Return the figures for a terminal."""
    parts = [
        *_headlines(evaluation),
        "",
        table(_class_rows(evaluation)),
        "",
        table(_confusion_rows(evaluation)),
    ]
    if mistakes := evaluation.mistakes()[:WORST]:
        rows = [[str(m.path), m.truth, m.answer, f"{m.confidence:.1%}"] for m in mistakes]
        parts += ["", table([["worst mistakes", "true", "predicted", "confidence"], *rows])]
    return "\n".join(parts)


def as_page(evaluation: Evaluation) -> str:
    """Return the same as one self-contained HTML page, with the pictures of the worst mistakes."""
    figures = [
        f'<figure><img alt="" src="{_thumbnail(m.path)}"><figcaption>{html.escape(m.truth)}, predicted '
        f"{html.escape(m.answer)} "
        f"({m.confidence:.1%})<br><small>{html.escape(m.path.name)}</small></figcaption></figure>"
        for m in evaluation.mistakes()[:WORST]
    ]
    return string.Template(TEMPLATE.read_text("utf-8")).substitute(
        headlines="".join(f"<li>{html.escape(line)}</li>" for line in _headlines(evaluation)),
        classes=_html_table(_class_rows(evaluation)),
        confusion=_html_table(_confusion_rows(evaluation)),
        mistakes="".join(figures) or "<p>None.</p>",
    )


def _html_table(rows: list[list[str]]) -> str:
    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    lines = [
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in body
    ]
    return f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{''.join(lines)}"


def _thumbnail(path: Path) -> str:
    """Return a small JPEG as a data: link."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail(THUMBNAIL)
        image.convert("RGB").save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""Every transform with its options: files that fastai exports, against its own `learn.predict`."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from app.photos.decode import decode
from app.serving.opening import open_model
from app.settings import Settings
from tests.conftest import IMAGES
from tests.matrix import BATCHES, ITEMS, ROWS, Notebook, all_of, one_at_a_time

BAR = 1e-3  # the largest difference of any probability
ASKED = [photo for photo in IMAGES if photo.name[:3] in ("a05", "a16", "e00", "c03", "d05")]
EXACT = [photo for photo in ASKED if photo.name[:3] in ("a05", "a16", "e00")]  # no rest is cut at random
TRAINED = IMAGES[:8]

Compare = Callable[[Notebook, list[Path]], float]


@pytest.fixture(scope="module")
def compare(make_learner: Callable[..., Any], vision: Any) -> Compare:
    """The largest difference of a notebook's export from its `predict`, in any probability of any photo."""
    learn = make_learner("squeezenet1_1", vision.Resize(128))
    names = vars(vision) | {"Image": Image}

    def worst(notebook: Notebook, photos: list[Path]) -> float:
        learn.dls = vision.DataBlock(
            blocks=(vision.ImageBlock, vision.CategoryBlock(vocab=["black", "grizzly", "teddys"])),
            get_y=lambda photo: ["black", "grizzly", "teddys"][len(photo.name) % 3],
            item_tfms=eval(notebook.item_tfms, dict(names)),
            batch_tfms=eval(notebook.batch_tfms, dict(names)),
        ).dataloaders(TRAINED, bs=1, num_workers=0)
        learn.export("export.pkl")
        settings = Settings(model_url=str(learn.path / "export.pkl"), exif="ignore", pillow=PIL.__version__)
        model = asyncio.run(open_model(settings, lambda *_: None))
        differences = []
        for photo in photos:
            with learn.no_bar(), learn.no_logging():
                theirs = learn.predict(photo)[2].numpy()
            (ours,) = model.run([model.prepare(decode(photo.read_bytes(), "ignore"))])
            assert ours.probabilities.argmax() == theirs.argmax(), (notebook, photo.name)
            differences.append(float(np.abs(ours.probabilities - theirs).max()))
        return max(differences)

    return worst


def assert_all_agree(notebooks: Iterable[Notebook], photos: list[Path], compare: Compare) -> None:
    found = {notebook: compare(notebook, photos) for notebook in notebooks}
    assert {notebook: worst for notebook, worst in found.items() if worst > BAR} == {}


def photos_for(name: str) -> list[Path]:
    return EXACT if name == "RatioResize" else ASKED


@pytest.mark.slow
@pytest.mark.parametrize("name", ITEMS | BATCHES)
def test_each_option_of_a_transform_answers_as_its_notebook_predicts(name: str, compare: Compare) -> None:
    assert_all_agree(one_at_a_time(name), photos_for(name), compare)


@pytest.mark.slow
def test_transforms_in_a_row_answer_as_their_notebook_predicts(compare: Compare) -> None:
    assert_all_agree(ROWS, ASKED, compare)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ITEMS | BATCHES)
def test_all_combinations_of_options_answer_as_their_notebook_predicts(name: str, compare: Compare) -> None:
    assert_all_agree(all_of(name), photos_for(name), compare)

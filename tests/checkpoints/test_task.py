"""Networks of other tasks, made by their own libraries: one true sentence each, before any architecture."""

import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from app.checkpoints.reader import read_checkpoint
from app.checkpoints.task import check_task
from app.errors import CheckpointError, NotAClassifier
from app.graphs.graph import shipped_graphs
from app.serving.recognize import recognize
from tests.conftest import DATA, IMAGES

ELSEWHERE = " Use it in Python, with the library that trained it."
EXPECTED = ", but a checkpoint such as learn.save('stage-2') writes was expected: "


def sentence(path: Path) -> str:
    """The one about a file that is not served."""
    with pytest.raises(CheckpointError) as caught:
        recognize(read_checkpoint(path))
    return str(caught.value)


def saved(value: Any, folder: Path) -> Path:
    torch.save(value, folder / "stage-2.pth")
    return folder / "stage-2.pth"


class Parts(torch.nn.Module):
    """A network of named parts."""

    def __init__(self, **parts: torch.nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def tabular(vision: Any) -> Any:
    from fastai.tabular.all import Categorify, Normalize, TabularDataLoaders, tabular_learner

    table = pd.DataFrame({"age": np.arange(20.0), "job": ["a", "b"] * 10, "y": ["u", "v"] * 10})
    loaders = TabularDataLoaders.from_df(
        table, cat_names=["job"], cont_names=["age"], y_names="y", procs=[Categorify, Normalize], bs=4
    )
    return tabular_learner(loaders, layers=[8])


def collaborative(vision: Any) -> Any:
    from fastai.collab import CollabDataLoaders, collab_learner

    ratings = pd.DataFrame(
        {"user": [1, 2, 3, 4] * 5, "item": list("xyzwq") * 4, "rating": np.arange(20.0) % 5}
    )
    return collab_learner(CollabDataLoaders.from_df(ratings, bs=4), n_factors=4, y_range=(0, 5))


def language(vision: Any) -> Any:
    from fastai.text.all import AWD_LSTM, TextDataLoaders, awd_lstm_clas_config, text_classifier_learner

    texts = pd.DataFrame({"text": ["hello world foo bar"] * 20, "label": ["a", "b"] * 10})
    loaders = TextDataLoaders.from_df(texts, text_col="text", label_col="label", bs=4, seq_len=4)
    config = {**awd_lstm_clas_config, "emb_sz": 8, "n_hid": 8, "n_layers": 2}
    return text_classifier_learner(loaders, AWD_LSTM, pretrained=False, config=config)


def segmentation(vision: Any) -> Any:
    loaders = vision.SegmentationDataLoaders.from_label_func(
        DATA, IMAGES[:6], lambda path: np.zeros((64, 64), np.uint8), codes=["a", "b"],
        item_tfms=vision.Resize(64), bs=2, num_workers=0,
    )  # fmt: skip
    return vision.unet_learner(loaders, vision.resnet18, pretrained=False)


def learner_of(vision: Any, block: Any, target: Any, **options: Any) -> Any:
    data = vision.DataBlock((vision.ImageBlock, block), get_y=target, item_tfms=vision.Resize(64))
    loaders = data.dataloaders(IMAGES[:6], bs=2, num_workers=0)
    return vision.vision_learner(loaders, vision.squeezenet1_1, pretrained=False, **options)


def a_point(path: Path) -> Any:
    return torch.tensor([[3.0, 4.0]])


def a_number(path: Path) -> float:
    return 0.5


def points(vision: Any) -> Any:
    return learner_of(vision, vision.PointBlock, a_point, y_range=(-1, 1))


def regression(vision: Any) -> Any:
    return learner_of(vision, vision.RegressionBlock, a_number)


TEXTS = (
    "The file is a text model of fastai, not a classifier of photos (it has 0.module.encoder_dp.emb.weight, "
    "0.module.rnns.0.weight_hh_l0_raw): it takes texts." + ELSEWHERE
)
TABLES = (
    "The file is a model of tables, not a classifier of photos (it has embeds.0.weight, bn_cont.weight): it "
    "takes rows of a table." + ELSEWHERE
)
RATINGS = (
    "The file is a recommender (collaborative filtering), not a classifier of photos (it has "
    "u_weight.weight, i_weight.weight): it takes users and items." + ELSEWHERE
)
MASKS = (
    "The file is a segmentation network, not a classifier of photos (it has layers.4.shuf.0.0.weight, "
    "layers.4.shuf.0.0.bias): it gives each pixel a class." + ELSEWHERE
)
LEARNER = "The file is a learner for {}, but this server gives photos classes." + ELSEWHERE
ROWS = LEARNER.format("rows of a table (tabular_learner, collab_learner)")


@pytest.mark.parametrize(
    ("make", "of_weights", "of_export"),
    [
        (language, TEXTS, LEARNER.format("texts (TextBlock)")),
        (tabular, TABLES, ROWS),
        (collaborative, RATINGS, ROWS),
        (segmentation, MASKS, LEARNER.format("masks (MaskBlock)")),
        (points, None, LEARNER.format("points (PointBlock)")),
        (regression, None, LEARNER.format("numbers (RegressionBlock)")),
    ],
    ids=["texts", "tables", "ratings", "masks", "points", "numbers"],
)
def test_a_learner_of_another_task_is_named(
    make: Callable[[Any], Any], of_weights: str | None, of_export: str, vision: Any, tmp_path: Path
) -> None:
    learn = make(vision)
    learn.path = tmp_path
    learn.export("export.pkl")
    assert sentence(tmp_path / "export.pkl") == of_export
    if of_weights:  # of points and numbers the weights alone do not tell
        assert sentence(learn.save("stage-2")) == of_weights


def test_a_loss_of_numbers_is_never_a_softmax(vision: Any, tmp_path: Path) -> None:
    loaders = vision.ImageDataLoaders.from_lists(
        DATA, IMAGES[:6], list("ababab"), item_tfms=vision.Resize(32), bs=2, num_workers=0
    )
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    learn = vision.Learner(loaders, model, loss_func=torch.nn.SmoothL1Loss())
    learn.path = tmp_path
    learn.export("export.pkl")
    assert sentence(tmp_path / "export.pkl") == LEARNER.format("numbers (its loss is SmoothL1Loss)")


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "detector": (
        lambda: detection("ssdlite320_mobilenet_v3_large"),
        "The file is a detector, not a classifier of photos (it has "
        "head.classification_head.module_list.0.0.0.weight, "
        "head.classification_head.module_list.0.0.1.weight): it draws boxes or key points on a photo."
        + ELSEWHERE,
    ),
    "segmentation": (
        lambda: segmenter("lraspp_mobilenet_v3_large"),
        "The file is a segmentation network, not a classifier of photos (it has "
        "classifier.low_classifier.weight, classifier.low_classifier.bias): it gives each pixel a class."
        + ELSEWHERE,
    ),
    "generator": (
        lambda: torch.nn.Sequential(torch.nn.ConvTranspose2d(100, 8, 4), torch.nn.ConvTranspose2d(8, 3, 4)),
        "The file is a network that answers with a picture (a generator or a segmentation network), not a "
        "classifier of photos: it ends with 1.weight of (8, 3, 4, 4)." + ELSEWHERE,
    ),
    "autoencoder": (
        lambda: Parts(encoder=torch.nn.Conv2d(3, 8, 3), decoder=torch.nn.ConvTranspose2d(8, 3, 3)),
        "The file is an encoder with a decoder (an autoencoder, or a segmentation network), not a classifier "
        "of photos (it has decoder.weight, decoder.bias): it answers with a picture." + ELSEWHERE,
    ),
    "recurrent": (
        lambda: Parts(lstm=torch.nn.LSTM(4, 4), fc=torch.nn.Linear(4, 2)),
        "The file is a recurrent network (LSTM or GRU), not a classifier of photos (it has "
        "lstm.weight_ih_l0): it takes sequences, such as texts or measurements." + ELSEWHERE,
    ),
    "sound": (
        lambda: torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.Linear(4, 2)),
        "The file is a network for sequences, such as sound or measurements, not for photos: it convolves "
        "over one dimension (0.weight of (4, 1, 3))." + ELSEWHERE,
    ),
    "video": (
        lambda: torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.Linear(4, 2)),
        "The file is a network for videos or volumes, not for photos: it convolves over three dimensions "
        "(0.weight of (4, 3, 3, 3, 3))." + ELSEWHERE,
    ),
    "other channels": (
        lambda: torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3), torch.nn.Linear(4, 2)),
        "The file is a network for pictures of other channels, not for photos: none of its convolutions "
        "takes 3 channels, and the first not 1 (0.weight of (4, 5, 3, 3))." + ELSEWHERE,
    ),
    "rows": (
        lambda: torch.nn.Sequential(torch.nn.Linear(784, 20), torch.nn.ReLU(), torch.nn.Linear(20, 10)),
        "The file is a network without convolutions, which takes rows of numbers, not photos (its layers: "
        "0.weight of (20, 784), 2.weight of (10, 20))." + ELSEWHERE,
    ),
}


def detection(name: str) -> torch.nn.Module:
    import torchvision.models.detection as models

    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=3)  # type: ignore[no-any-return]


def segmenter(name: str) -> torch.nn.Module:
    import torchvision.models.segmentation as models

    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=3)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_task_is_named(name: str, vision: Any, tmp_path: Path) -> None:
    make, expected = NETWORKS[name]
    model = make()
    assert sentence(saved(model.state_dict(), tmp_path)) == expected
    assert sentence(saved(model, tmp_path)) == expected


def test_no_shipped_architecture_is_taken_for_another_task() -> None:
    for graph in shipped_graphs():
        try:
            check_task(graph.weights, ())
        except NotAClassifier as error:
            raise AssertionError(graph.architecture) from error


def write(path: Path, entries: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in entries:
            archive.writestr(name, b"x")


TF2ONNX = "convert the model to ONNX with tf2onnx, and deploy that."
SAVE = "fastai's learn.save('stage-2') writes the file to deploy."


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            ["metadata.json", "config.json", "model.weights.h5"],
            "The file is a Keras model" + EXPECTED + TF2ONNX,
        ),
        (["m/saved_model.pb"], "The file is a SavedModel of TensorFlow" + EXPECTED + TF2ONNX),
        (
            ["MAR-INF/MANIFEST.json", "bears.pth"],
            "The file is a TorchServe archive" + EXPECTED + "unpack it and deploy bears.pth.",
        ),
        (["a.npy"], "The file is a numpy archive of a.npy" + EXPECTED + SAVE),
        (
            ["bears/readme.txt", "bears/stage-2.pth"],
            "The file is a zip file of bears/readme.txt, bears/stage-2.pth, without the data.pkl that torch "
            "writes; a checkpoint such as learn.save('stage-2') writes was expected: unpack it and deploy "
            "bears/stage-2.pth.",
        ),
    ],
)
def test_an_archive_of_something_else_is_named(entries: list[str], expected: str, tmp_path: Path) -> None:
    write(tmp_path / "stage-2.pth", entries)
    assert sentence(tmp_path / "stage-2.pth") == expected


def test_a_tar_archive_is_listed(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    with tarfile.open(tmp_path / "stage-2.pth", "w") as archive:
        archive.add(tmp_path / "model.pth", "bears/model.pth")
    assert sentence(tmp_path / "stage-2.pth") == (
        "The file is a tar archive of bears/model.pth" + EXPECTED + "unpack it and deploy bears/model.pth."
    )


def test_objects_of_other_libraries_are_named(tmp_path: Path) -> None:
    forest = RandomForestClassifier(2).fit(np.random.default_rng(0).random((8, 4)), [0, 1] * 4)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(forest))
    assert sentence(path) == (
        "The file holds an object of scikit-learn (sklearn.ensemble._forest.RandomForestClassifier): it "
        "takes rows of numbers, not photos."
    )
    joblib.dump(forest, path)
    assert sentence(path) == (
        "The file holds objects of joblib, as scikit-learn saves its models: they take rows of numbers, not "
        "photos."
    )


def test_an_optimizer_alone_is_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    state = torch.optim.Adam(model.parameters()).state_dict()
    expected = (
        "The file holds the state of an optimizer alone, without the weights of the network. Save those: "
        "learn.save('stage-2'), or torch.save(model.state_dict(), 'model.pth')."
    )
    assert sentence(saved(state, tmp_path)) == expected
    assert sentence(saved({"epoch": 3, "optimizer": state}, tmp_path)) == expected

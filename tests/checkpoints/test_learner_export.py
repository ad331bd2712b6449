"""What an exported learner knows: compared with the learner itself, and with real fastai v1's files."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.checkpoints.budget import Budget
from app.checkpoints.reader import Checkpoint, read_checkpoint
from app.checkpoints.transforms import read_databunch, read_transforms
from app.checkpoints.unpickler import Unpickler
from app.errors import ArchitectureUnknown, CheckpointError
from app.graphs.bodies import create_body
from app.photos.notebook import read_fastai
from app.serving.recognize import recognize
from tests.conftest import BEARS, DATA, IMAGES

V1 = DATA / "v1"
FLIP = "Flip(pad_mode='reflection', align_corners=True)"
IMAGENET = "Normalize.from_stats([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])"
V1_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def exported(learn: Any, name: str = "export.pkl") -> Checkpoint:
    learn.export(name)
    return read_checkpoint(learn.path / name)


def assert_same_arrays(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    state = model.state_dict()
    assert list(checkpoint.arrays) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], tensor.numpy())


def assert_known(checkpoint: Checkpoint, **expected: Any) -> None:
    for name, value in expected.items():
        known = checkpoint.known[name]
        assert known == pytest.approx(value) if name in ("mean", "std", "val_xtra") else known == value, name


@pytest.mark.parametrize(
    ("item", "options", "expected"),
    [
        (
            ("Resize", 224, {}),
            {},
            {
                "item_tfms": "[Resize(size=(224, 224), pad_mode='reflection')]",
                "batch_tfms": f"[{FLIP}, {IMAGENET}]",
            },
        ),
        (
            ("Resize", (192, 256), {"method": "pad", "pad_mode": "zeros"}),
            {"stats": None},
            {
                "item_tfms": "[Resize(size=(192, 256), method='pad', pad_mode='zeros')]",
                "batch_tfms": f"[{FLIP}]",
                "mean": (0, 0, 0),
                "std": (1, 1, 1),
            },
        ),
        (
            ("RandomResizedCrop", (96, 128), {"val_xtra": 0.3}),
            {"stats": ((0.5,) * 3, (0.25,) * 3)},
            {
                "item_tfms": "[RandomResizedCrop(size=(96, 128), val_xtra=0.3)]",
                "batch_tfms": f"[{FLIP}, Normalize.from_stats([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])]",
            },
        ),
        (
            ("Resize", 460, {"method": "squish"}),
            {"batch_size": (192, 256)},
            {
                "item_tfms": "[Resize(size=(460, 460), method='squish', pad_mode='reflection')]",
                "batch_tfms": "[Flip(size=(192, 256), pad_mode='reflection', align_corners=True), "
                f"{IMAGENET}]",
            },
        ),
    ],
    ids=["crop", "padded, not normalized", "random crop", "presized"],
)
def test_an_export_of_v2_tells_what_its_learner_does(
    item: Any, options: Any, expected: Any, make_learner: Callable[..., Any], vision: Any
) -> None:
    name, size, more = item
    learn = make_learner("squeezenet1_1", getattr(vision, name)(size, **more), **options)
    checkpoint = exported(learn)
    assert checkpoint.export is not None
    assert (checkpoint.export.writer, checkpoint.export.unserved) == ("fastai v2 learn.export", ())
    assert_same_arrays(checkpoint, learn.model)
    assert_known(checkpoint, **{"classes": BEARS, "multi_label": False, **expected})


def learner_of_labels(
    vision: Any, tmp_path: Path, labels: list[Any], y_block: Any = None, **options: Any
) -> Any:
    dls = vision.ImageDataLoaders.from_lists(
        DATA, IMAGES[: len(labels)], labels, y_block=y_block, item_tfms=vision.Resize(32), bs=2, num_workers=0
    )
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    learn = vision.Learner(dls, torch.nn.Sequential(body, torch.nn.Linear(4, 3)), **options)
    learn.path = tmp_path
    return learn


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 1, 2, 1, 2, 3], ("1", "2", "3")),
        (list(np.array([3, 1, 2, 1, 2, 3])), ("1", "2", "3")),
        (["cat ", "dog", "cat ", "dog", " eel", "dog"], (" eel", "cat ", "dog")),
        ([True, False] * 3, ("False", "True")),
    ],
    ids=["numbers", "numpy numbers", "trailing blanks", "booleans"],
)
def test_class_names_come_out_as_text_and_otherwise_unchanged(
    labels: list[Any], classes: tuple[str, ...], vision: Any, tmp_path: Path
) -> None:
    assert exported(learner_of_labels(vision, tmp_path, labels)).known["classes"] == classes


def test_several_labels_a_photo_are_known_with_their_threshold(vision: Any, tmp_path: Path) -> None:
    labels = [["a", "b"], ["c"], ["a"], ["b", "c"], ["a"], ["b"]]
    loss = vision.BCEWithLogitsLossFlat(thresh=0.2)
    learn = learner_of_labels(vision, tmp_path, labels, vision.MultiCategoryBlock(), loss_func=loss)
    assert_known(exported(learn), classes=("a", "b", "c"), multi_label=True, threshold=0.2)


def test_a_transform_of_ones_own_is_named(vision: Any, make_learner: Callable[..., Any]) -> None:
    class Dimmed(vision.DisplayedTransform):
        def encodes(self, photo: vision.PILImage) -> Any:
            return photo.point(lambda value: value // 2)

    globals()["Dimmed"], Dimmed.__qualname__ = Dimmed, "Dimmed"  # as a notebook's own class is pickled
    found = exported(make_learner("squeezenet1_1", [vision.Resize(64), Dimmed()])).export
    assert found is not None
    assert found.unserved == (f"it uses {__name__}.Dimmed, which is not reproduced",)


def test_a_transform_that_was_pickled_with_its_class_is_named(
    vision: Any, make_learner: Callable[..., Any]
) -> None:
    class Darkened(vision.DisplayedTransform):  # not found by its name, so that cloudpickle takes it along
        def encodes(self, photo: vision.PILImage) -> Any:
            return photo.point(lambda value: value // 2)

    found = exported(make_learner("squeezenet1_1", [vision.Resize(64), Darkened()])).export
    assert found is not None
    assert found.unserved == ("it uses Darkened, which is not reproduced",)


def test_two_normalizations_are_one(vision: Any, make_learner: Callable[..., Any]) -> None:
    learn = make_learner("squeezenet1_1", vision.Resize(64), stats=([0.1, 0.2, 0.3], [0.5, 0.4, 0.2]))
    learn.dls.add_tfms([vision.Normalize.from_stats([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])], "after_batch")
    checkpoint = exported(learn)
    assert checkpoint.export is not None and checkpoint.export.unserved == ()
    pixels = torch.rand(1, 3, 4, 4)
    expected = vision.TensorImage(pixels)
    for transform in learn.dls.valid.after_batch.fs[-2:]:
        expected = transform(expected.to(transform.mean.device))
    _, (mean, std) = read_fastai("", checkpoint.known["batch_tfms"])
    found = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    np.testing.assert_allclose(found, expected.cpu(), atol=1e-5)


def test_what_opens_the_photos_is_named_unless_it_is_fastais_own(vision: Any, tmp_path: Path) -> None:
    block = vision.TransformBlock(
        type_tfms=[vision.PILImage.create, darker], batch_tfms=vision.IntToFloatTensor
    )
    data = vision.DataBlock((block, vision.CategoryBlock), get_y=label, item_tfms=vision.Resize(32))
    found = exported(tiny_learner(vision, data.dataloaders(IMAGES[:8], bs=2, num_workers=0), tmp_path)).export
    assert found is not None
    assert found.unserved == ("its photos are opened by darker, which is not PILImage.create",)


def test_gray_photos_are_known(vision: Any, tmp_path: Path) -> None:
    blocks = (vision.ImageBlock(vision.PILImageBW), vision.CategoryBlock)
    data = vision.DataBlock(blocks, get_y=label, item_tfms=vision.Resize(32))
    dls = data.dataloaders(IMAGES[:8], bs=2, num_workers=0)
    assert exported(tiny_learner(vision, dls, tmp_path)).known["gray"] is True


@pytest.mark.parametrize(
    ("loss", "raw_scores"),
    [
        (torch.nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (torch.nn.functional.cross_entropy, "cross_entropy"),
        (None, ""),
    ],
    ids=["a module", "a function", "fastai's"],
)
def test_a_loss_with_which_predict_answers_raw_scores_is_named(
    loss: Any, raw_scores: str, vision: Any, tmp_path: Path
) -> None:
    learn = learner_of_labels(vision, tmp_path, list("ababab"), loss_func=loss)
    found = exported(learn).export
    assert found is not None
    assert (found.raw_scores, found.known["multi_label"]) == (raw_scores, False)


def darker(photo: Any) -> Any:
    return photo.point(lambda value: value // 2)


def label(path: Path) -> str:
    return "ab"[len(path.name) % 2]


def tiny_learner(vision: Any, dls: Any, folder: Path) -> Any:
    body = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = torch.nn.Sequential(body, torch.nn.Linear(4, 2))
    model(dls.one_batch()[0])
    learn = vision.Learner(dls, model)
    learn.path = folder
    return learn


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("export.pkl", {"classes": BEARS, "ds_tfms": "get_transforms(), size=224", **V1_IMAGENET}),
        (
            "squished.pkl",  # size=(96, 128), and no normalize()
            {
                "classes": BEARS,
                "ds_tfms": "get_transforms(), size=(96, 128)",
                "mean": (0, 0, 0),
                "std": (1, 1, 1),
            },
        ),
        ("numbers.pkl", {"classes": ("5", "6", "7"), "ds_tfms": "get_transforms(), size=64", **V1_IMAGENET}),
        ("several-labels.pkl", {"classes": (*BEARS, "x "), "multi_label": True}),
    ],
)
def test_an_export_of_real_v1_tells_what_its_learner_does(name: str, expected: dict[str, Any]) -> None:
    checkpoint = read_checkpoint(V1 / name)
    assert checkpoint.export is not None
    assert checkpoint.export.writer == "fastai v1 learn.export"
    assert_known(checkpoint, **expected)
    assert all(array.size for array in checkpoint.arrays.values())


def test_an_export_of_real_v1_holds_the_weights_that_its_learner_saved() -> None:
    export, saved = read_checkpoint(V1 / "export.pkl"), read_checkpoint(V1 / "stage-2.pth")
    assert list(export.arrays) == list(saved.arrays)
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(export.arrays[name], array)
    assert json.loads((V1 / "meta.json").read_text())["classes"] == list(export.known["classes"])


def test_padding_of_v1_is_known() -> None:
    export = read_checkpoint(V1 / "several-labels.pkl").export
    assert export is not None
    assert export.unserved == ()
    assert export.known["ds_tfms"] == "get_transforms(), size=64, resize_method=ResizeMethod.PAD"


def test_a_data_export_of_v1_is_named_for_what_it_is() -> None:
    with pytest.raises(
        CheckpointError, match=r"data\.export of fastai v1.*\(black, grizzly, teddys\), but no weights"
    ):
        read_checkpoint(V1 / "data-export.pkl")


@pytest.mark.parametrize("name", ["model.pth", "model-plain.pkl"])  # torch.save, pickle.dump
def test_a_whole_model_of_torch_1_0_is_read(name: str) -> None:
    checkpoint = read_checkpoint(V1 / name)
    assert checkpoint.export is not None
    assert checkpoint.export.writer == "torch.save(model)"
    shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
    assert shapes == {
        "0.0.weight": (8, 3, 3, 3),
        "0.0.bias": (8,),
        "1.0.weight": (8, 8, 3, 3),
        "1.0.bias": (8,),
        "2.0.weight": (3, 8, 3, 3),
        "2.0.bias": (3,),
    }


def test_modules_that_share_their_branches_without_measure_are_refused(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(40):  # 2 ** 40 ways to the layer
        module = torch.nn.Sequential(module, module)
    torch.save(module, tmp_path / "stage-2.pth")
    with pytest.raises(CheckpointError, match="over 100,000 modules and tensors"):
        read_checkpoint(tmp_path / "stage-2.pth")


class Named:
    """Pickled under the name of a class or function that is not installed here."""

    def __init__(self, module: str, name: str, *arguments: Any, **state: Any) -> None:
        self.kind = type(name, (), {"__module__": module, "__qualname__": name})
        self.arguments, self.state = arguments, state

    def __reduce__(self) -> Any:
        return self.kind, self.arguments, self.state or None


class Names(pickle._Pickler):
    """Writes the names of classes that cannot be imported."""

    def save_global(self, thing: Any, name: str | None = None) -> None:
        self.write(f"c{thing.__module__}\n{name or thing.__qualname__}\n".encode())
        self.memoize(thing)


def by_name(value: Any) -> Any:
    """What the reader makes of an object."""
    file = io.BytesIO()
    Names(file, 2).dump(value)
    return Unpickler(io.BytesIO(file.getvalue()), Budget.of(10_000)).load()


def test_the_attributes_of_fastai_2_0_are_understood() -> None:
    size = Named("fastcore.utils", "Tuple", (96, 64))
    resize = by_name(Named("fastai2.vision.augment", "Resize", size=size, mode=3))
    known, unserved = read_transforms([resize], [], lambda tensor: np.zeros(3))
    assert (known["item_tfms"], unserved) == ("[Resize(size=(64, 96), resamples=(3, 0))]", [])


@pytest.mark.parametrize("function", ["_rebuild_from_type", "_fa_rebuild_tensor"])
def test_tensors_as_fastai_wrote_them_before_torch_2_are_tensors(function: str, tmp_path: Path) -> None:
    import fastai.torch_core as core

    class Old(torch.Tensor):
        def __reduce_ex__(self, protocol: Any) -> Any:
            data = (
                self._typed_storage(),
                self.storage_offset(),
                tuple(self.size()),
                self.stride(),
                False,
                {},
            )  # type: ignore[attr-defined]
            if function == "_fa_rebuild_tensor":
                return core._fa_rebuild_tensor, (core.TensorBase, *data)
            return core._rebuild_from_type, (torch._utils._rebuild_tensor_v2, core.TensorBase, data, {})

    state = {"mean": torch.arange(6.0).reshape(2, 3).T.as_subclass(Old)}
    torch.save(state, tmp_path / "stage-2.pth")
    arrays = read_checkpoint(tmp_path / "stage-2.pth").arrays
    np.testing.assert_array_equal(arrays["mean"], np.arange(6.0).reshape(2, 3).T)


def test_another_crop_of_v1_than_the_central_one_is_said() -> None:
    def transform(name: str, **chosen: Any) -> Any:
        crop = Named("fastai.vision.image", "TfmCrop", func=type(name, (), {"__module__": "fastai"}))
        return Named("fastai.vision.image", "RandTransform", tfm=crop, kwargs=chosen)

    def unserved(*transforms: Any) -> list[str]:
        return read_databunch({}, [by_name(each) for each in transforms], None, lambda tensor: np.zeros(3))[1]

    assert unserved(transform("_crop_pad")) == []
    assert unserved(transform("_crop_pad", row_pct=(0, 1)), transform("_rotate")) == [
        "it uses v1's crop_pad at validation, which is not reproduced",
        "it uses v1's rotate at validation, which is not reproduced",
    ]


def test_tensors_that_one_module_shares_without_measure_are_refused(tmp_path: Path) -> None:
    module = torch.nn.Module()
    for number in range(1000):
        module.register_buffer(str(number), torch.zeros(1))
    for _ in range(2):  # 10,000,000 names
        shared, module = module, torch.nn.Module()
        module._modules = {str(number): shared for number in range(100)}
    torch.save(module, tmp_path / "stage-2.pth")
    with pytest.raises(CheckpointError, match="over 100,000 modules"):
        read_checkpoint(tmp_path / "stage-2.pth")


def test_with_a_loss_that_is_not_known_the_blocks_say_whether_several_labels_may_be_right(
    vision: Any, tmp_path: Path
) -> None:
    labels = [["a", "b"], ["c"], ["a"], ["b", "c"], ["a"], ["b"]]
    loss = torch.nn.MultiLabelSoftMarginLoss()
    learn = learner_of_labels(vision, tmp_path, labels, vision.MultiCategoryBlock(), loss_func=loss)
    assert exported(learn).known["multi_label"] is True


def test_layers_that_names_and_shapes_do_not_tell_are_not_taken_for_the_usual_ones(
    vision: Any, tmp_path: Path
) -> None:
    model = torch.nn.Sequential(create_body("resnet18"), vision.create_head(512, 3))
    torch.save(model, tmp_path / "usual.pth")
    model[0][2] = torch.nn.GELU()
    torch.save(model, tmp_path / "strange.pth")
    usual, strange = (read_checkpoint(tmp_path / f"{name}.pth") for name in ("usual", "strange"))
    assert recognize(usual).architecture == "resnet18"
    with pytest.raises(ArchitectureUnknown, match=r"but not its layers: it has GELU in place of ReLU"):
        recognize(strange)


def test_a_head_in_an_export_that_is_not_understood_is_left_to_torch(vision: Any, tmp_path: Path) -> None:
    model = vision.models.resnet18(num_classes=3)
    model.fc = torch.nn.Sequential(torch.nn.Linear(512, 8), torch.nn.Softplus(), torch.nn.Linear(8, 3))
    torch.save(model, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    with pytest.raises(ArchitectureUnknown):
        recognize(checkpoint)

"""Transforms in a notebook's words: what they do to pixels is compared with the library that they are of."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from app.errors import SettingsError
from app.graphs.evaluations import FILE, Evaluation, _evaluations, evaluation_of
from app.photos.decode import decode
from app.photos.notebook import read_fastai, read_fastai1, read_torchvision
from app.photos.resample import FILTERS, resize
from app.photos.transforms import Preprocess, Step, written
from tests.conftest import DATA, IMAGES, NEWEST_PILLOW, image_bytes
from tests.photos.test_transforms import photo

# narrow, square, smaller than what it becomes, odd, tiny
SIZES = [(640, 480), (160, 160), (70, 90), (333, 1201), (3, 7)]
FLOAT_NOISE = 3e-4  # torch rounds positions to float32

SIZED = [
    *(f"Resize(96, method='{method}')" for method in ("crop", "squish", "pad")),
    *(f"Resize((96, 128), ResizeMethod.Pad, PadMode.{mode})" for mode in ("Zeros", "Border", "Reflection")),
    *(f"Resize(96, resamples=(Image.Resampling.{name.upper()}, 0))" for name in FILTERS),
    "Resize((96, 64), 'squish', resamples=(3, 0))",
    "RandomResizedCrop(96, min_scale=0.35)",
    "RandomResizedCrop((64, 96), val_xtra=0.3, resamples=(Image.BICUBIC, NEAREST))",
    "RandomResizedCrop(96, val_xtra=0, max_scale=0.9)",
    "CropPad(96)",
    "CropPad((96, 128), pad_mode='border')",
    "RandomCrop(96)",
    "[Resize(128), RandomCrop(96)]",
    "[Resize(128), CropPad(96)]",  # which comes first, by its order
    "[FlipItem(p=1.), DihedralItem(p=1.), Resize(96)]",
    "[Resize(64), Resize(96)]",  # of one class the last counts
    "[Resize(96), Resize(64, split_idx=0)]",
    "[]",
]
AUGMENTED = [
    "aug_transforms()",
    "[*aug_transforms(size=96, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]",
    "aug_transforms(size=(96, 128))",
    *(f"aug_transforms(size=80, mode='{mode}')" for mode in ("bilinear", "nearest", "bicubic")),
    *(
        f"aug_transforms(size=300, align_corners=False, pad_mode='{m}')"
        for m in ("zeros", "border", "reflection")
    ),
    "aug_transforms(size=150, align_corners=False, mode='bicubic', pad_mode='zeros')",
    "aug_transforms(size=96, align_corners=False, mode='nearest')",
    "aug_transforms(size=96, do_flip=False, max_rotate=0., max_warp=0., max_zoom=1.)",  # none has a size
    "aug_transforms(2, size=96, flip_vert=True, max_lighting=0.4, xtra_tfms=[RandomErasing(), Hue(p=1.)])",
    "aug_transforms(mult=0., size=96)",
    "aug_transforms(min_scale=0.5)",
    "[Rotate(size=120), Zoom(size=96), Brightness()]",
    "[Flip(size=96, align_corners=False), Dihedral(), Warp()]",
    "[DeterministicFlip(size=96), DeterministicDihedral()]",  # which do not hand their size on
    "[RandomResizedCropGPU(96, ratio=(0.5, 0.8), min_scale=0.2, max_scale=0.9)]",
    "[RandomResizedCropGPU((96, 64), valid_scale=0.8, mode='nearest')]",
    "[Resize(32), Normalize.from_stats([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])]",  # Resize takes no pixels
    "[Normalize.from_stats(*cifar_stats), Normalize.from_stats(*imagenet_stats)]",
    "[IntToFloatTensor] + aug_transforms(size=96)",
]


def as_fastai_does(vision: Any, items: str, batches: str, image: Image.Image) -> np.ndarray:
    """The pixels of fastai's own transforms, evaluated, merged and run as a DataBlock does at validation."""
    from fastai.data.block import _merge_tfms

    names = vars(vision) | {"Image": Image}
    made = [eval(text or "[]", dict(names)) for text in (items, batches)]
    made = [each if isinstance(each, list) else [each] for each in made]
    item_tfms = vision.Pipeline(_merge_tfms([vision.ToTensor], made[0]), split_idx=1)
    batch_tfms = vision.Pipeline(_merge_tfms([vision.IntToFloatTensor], made[1]), split_idx=1)
    return np.asarray(batch_tfms(item_tfms(vision.PILImage(image))[None])[0], np.float32)


def ours(steps: tuple[Step, ...], statistics: Any, image: Image.Image) -> np.ndarray:
    mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
    return Preprocess(steps, mean, std, newest_pillow=NEWEST_PILLOW)(image)


@pytest.mark.parametrize("items", SIZED)
def test_item_tfms_make_the_pixels_that_fastai_makes(items: str, vision: Any) -> None:
    steps, _ = read_fastai(items, "")
    for width, height in SIZES:
        image = photo(width, height)
        expected = as_fastai_does(vision, items, "", image)
        np.testing.assert_array_equal(ours(steps, None, image), expected, f"{width} x {height}")


@pytest.mark.parametrize("batches", AUGMENTED)
@pytest.mark.parametrize("items", ["Resize(140)", "Resize((160, 230), method='pad')"])
def test_batch_tfms_make_the_pixels_that_fastai_makes(items: str, batches: str, vision: Any) -> None:
    steps, statistics = read_fastai(items, batches)
    for width, height in SIZES[:3]:
        image = photo(width, height)
        found, expected = ours(steps, statistics, image), as_fastai_does(vision, items, batches, image)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= FLOAT_NOISE / 0.2, f"{width} x {height}"


def test_ratio_resize_makes_the_size_that_fastai_makes(vision: Any) -> None:
    """fastai cuts what rounding leaves over at a random side, so a smooth picture is compared."""
    steps, _ = read_fastai("RatioResize(96)", "")
    for width, height in [(640, 480), (480, 641), (90, 90), (1201, 333)]:
        across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
        pixels = np.stack(np.broadcast_arrays(across[None], down[:, None], 90.0), axis=2).astype(np.uint8)
        image = Image.fromarray(pixels)
        found, expected = ours(steps, None, image), as_fastai_does(vision, "RatioResize(96)", "", image)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 8 / 255


def test_the_words_of_steps_are_read_as_the_same_steps() -> None:
    for items, batches in itertools.product(SIZED, AUGMENTED):
        steps, _ = read_fastai(items, batches)
        texts = written(steps)
        assert read_fastai(texts["item_tfms"], texts.get("batch_tfms", ""))[0] == steps, (items, batches)


@pytest.mark.parametrize(
    ("items", "batches", "sentence"),
    [
        ("MyTransform(3)", "", "item_tfms: line 1, column 1: `MyTransform` is not known"),
        ("[Resize(64),\n open('x')]", "", "item_tfms: line 2, column 2: `open` is not known"),
        ("Resize(size)", "", "item_tfms: line 1, column 8: `size` is not known"),
        ("Resize(64, metod='pad')", "", "line 1, column 12: Resize has no argument `metod`"),
        ("Resize(64, 'crop', 'zeros', 2, 3)", "", "Resize has 5 arguments; it takes 4"),
        ("lambda photo: photo", "", "`lambda photo: photo` is not a call or a literal"),
        ("Resize(64", "", "this is not Python"),
        ("Resize(64).__class__", "", "is not known"),
        ("Resize(0)", "", "its size is 0"),
        ("Resize(64, method='stretch')", "", "its method is 'stretch'"),
        ("Resize(64, resamples=9)", "", "its resamples are 9"),
        (
            "Normalize.from_stats(*imagenet_stats)",
            "",
            "Normalize cannot be repeated: fastai itself cannot use",
        ),
        ("", "Normalize()", "takes its statistics from the training photos"),
        ("", "Normalize.from_stats([1, 2], [1, 2])", "numbers for three channels or one were expected"),
        ("", "RandomResizedCropGPU(64, valid_scale=2.)", "its valid_scale is 2.0"),
        ("3", "", "3 is not a transform"),
        ("[Resize(64), *[3]]", "", "line 1, column 16: 3 is not a transform"),
        ("\0", "", "this is not Python"),
        ("(" * 3000, "", "this is not Python"),
        ("Resize(64, order='a')", "", "the order of Resize is 'a'"),
        ("RandomResizedCrop(64, val_xtra=1e999)", "", "its val_xtra is inf"),
        (
            "[Resize(64),\n RandomCrop('a')]",
            "",
            "line 2, column 2: RandomCrop cannot be repeated: its size is 'a'",
        ),
        ("", "aug_transforms", "write aug_transforms()"),
        ("", "aug_transforms(mult='a')", "its mult is 'a'"),
        ("", "aug_transforms(max_warp=None)", "its max_warp is None"),
        ("", "aug_transforms(xtra_tfms=[3])", "its xtra_tfms are [3]"),
        ("", "[Hue(),\n *aug_transforms(min_scale=[1])]", "batch_tfms: line 2, column 3: aug_transforms"),
        ("", "Normalize.from_stats([1e999, 0, 0], [1, 1, 1])", "its mean is [inf, 0, 0]"),
        ("", "Normalize.from_stats(imagenet_stats)", "takes its statistics from the training photos"),
        ("", "IntToFloatTensor(div=0)", "its div is 0"),
        ("", "RandomResizedCropGPU(64, ratio=(0, 1))", "its ratio is (0, 1)"),
    ],
)
def test_what_is_not_understood_is_named_with_its_place(items: str, batches: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_fastai(items, batches)
    assert sentence in str(caught.value)
    assert re.match(r"(item|batch)_tfms: line \d+", str(caught.value))


ODD = [
    ("Resize(\n    64,  # the side\n    method = 'pad', )", "", "Resize(64, 'pad')", ""),
    ("vision.Resize(0x40)", "", "Resize(64)", ""),
    ("[Resize(64)] + [RandomCrop(32)]", "", "[Resize(64), RandomCrop(32)]", ""),
    ("Resize(64), RandomCrop((32, 48),)", "", "[Resize(64), RandomCrop((32, 48))]", ""),
    ("[*[Resize(64)], *(FlipItem(),), None]", "", "Resize(64)", ""),
    ("Resize(*[64, 'squish'])", "", "Resize(64, 'squish')", ""),
    ("Resize(64)", "[IntToFloatTensor, *aug_transforms(xtra_tfms=Hue())]", "Resize(64)", ""),
    ("Resize(64, ResizeMethod.Pad, PadMode.Zeros)", "", "Resize(64, 'pad', 'zeros')", ""),
]


@pytest.mark.parametrize(("items", "batches", "same_items", "same_batches"), ODD)
def test_texts_mean_the_same_however_python_lets_one_write_them(
    items: str, batches: str, same_items: str, same_batches: str
) -> None:
    assert read_fastai(items, batches) == read_fastai(same_items, same_batches)


@hypothesis.given(st.text("Resize(64),[]*+.'\n #=aug_transforms{}:lambdN\0é", max_size=60))
def test_any_text_gives_steps_or_an_error_with_its_place(text: str) -> None:
    try:
        read_fastai(text, text)
    except SettingsError as error:
        assert re.match(r"(item|batch)_tfms: line \d+", str(error))


def test_nothing_of_a_text_is_run(tmp_path: Any) -> None:
    for text in (f"__import__('pathlib').Path('{tmp_path}/x').touch()", f"Resize(open('{tmp_path}/x', 'w'))"):
        with pytest.raises(SettingsError):
            read_fastai(text, "")
    assert not list(tmp_path.iterdir())


# --- fastai v1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("get_transforms(), size=96, bs=64", ["ds_tfms=get_transforms(), size=96"]),
        ("get_transforms(max_rotate=10.), size=(96, 128)", ["ds_tfms=get_transforms(), size=(96, 128)"]),
        ("ds_tfms=None, size=200, mult=32", ["ds_tfms=get_transforms(), size=192"]),
        (
            "get_transforms(), size=96, resize_method=ResizeMethod.PAD, padding_mode='zeros'",
            ["ds_tfms=get_transforms(), size=96, resize_method=ResizeMethod.PAD, padding_mode='zeros'"],
        ),
        ("([], [crop_pad()]), size=96, resize_method=ResizeMethod.NO", []),
        ("get_transforms(), size=None", []),
        ("get_transforms()", ["ds_tfms=get_transforms(), size=224"]),
    ],
)
def test_the_arguments_of_a_databunch_are_one_step(text: str, words: list[str]) -> None:
    assert [str(step) for step in read_fastai1(text, {"size": (224, 224), "resize_method": "crop"})] == words


def test_a_databunch_makes_the_pixels_that_fastai_1_0_50_made() -> None:
    stored = np.load(DATA / "v1" / "databunches.npz")  # by fastai 1.0.50 itself, in float16
    assert len(stored.files) == 16
    for name in stored.files:
        text, _, photo_name = name.partition("|")
        steps = read_fastai1(text, {})
        found = ours(steps, None, decode(image_bytes(photo_name), "ignore"))
        np.testing.assert_allclose(found, stored[name].astype(np.float32), atol=6e-4, err_msg=name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("get_transforms(), size=96, mode='nearest'", "its mode is 'nearest'"),
        ("([], [rotate(degrees=10)]), size=96", "`rotate` is not known"),
        ("[1, 2], size=96", "it uses v1's 2 at validation"),
        (
            "get_transforms(), size=96, mult=0",
            "ds_tfms: line 1, column 1: databunch cannot be repeated: its mult is 0",
        ),
        ("([], [crop_pad(row_pct=0.)]), size=96", "v1's crop_pad at validation"),
        ("get_transforms(), size=96, mode='bicubic'", "its mode is 'bicubic'"),
    ],
)
def test_what_v1_does_otherwise_at_validation_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_fastai1(text, {"size": (224, 224), "resize_method": "crop"})
    assert sentence in str(caught.value)


# --- torchvision and timm ----------------------------------------------------------------------------------

COMPOSED = [
    "Compose([Resize(96), CenterCrop(80), ToTensor()])",
    "Compose([Resize(96, interpolation=InterpolationMode.BICUBIC), CenterCrop((64, 96)), ToTensor()])",
    "Compose([Resize((96, 64), antialias=True), ToTensor(), Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])",
    "Compose([Resize(40, max_size=96), CenterCrop(96), ToTensor()])",
    "Compose([CenterCrop([96]), ToTensor()])",
    "Compose([ToTensor()])",
]


def tensors_of(transform: Any, image: Image.Image) -> np.ndarray:
    return np.asarray(transform(image), np.float32)


@pytest.mark.parametrize("text", COMPOSED)
def test_a_compose_makes_the_pixels_that_torchvision_makes(text: str, vision: Any) -> None:
    import torchvision.transforms as library

    steps, statistics = read_torchvision(text)
    for width, height in SIZES[:4]:
        image = photo(width, height)
        expected = tensors_of(eval(text, vars(library) | {}), image)
        np.testing.assert_allclose(ours(steps, statistics, image), expected, atol=1e-6)


def test_a_transform_that_is_random_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="column 22: `RandomHorizontalFlip` is not known"):
        read_torchvision("Compose([Resize(96), RandomHorizontalFlip(), ToTensor()])")


def own_transform(name: str, evaluation: Evaluation) -> Any:
    """What the library of an architecture itself evaluates it with."""
    import timm
    import torchvision

    if evaluation.library == "torchvision":
        return next(iter(torchvision.models.get_model_weights(name))).transforms()
    configuration = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**configuration)


# one architecture of each way of evaluating
WAYS = [
    "resnet34",
    "swin_t",
    "efficientnet_b1",
    "convnext_tiny",
    "timm.convnext_tiny",
    "tf_efficientnet_lite0",
]


@pytest.mark.parametrize("name", [*WAYS, "vit_tiny_patch16_224"])
def test_a_head_of_a_library_is_given_that_librarys_pixels(name: str, vision: Any) -> None:
    evaluation = evaluation_of(name)
    assert evaluation is not None
    transform = own_transform(name.removeprefix("timm."), evaluation)
    steps = evaluation.steps()
    for path in IMAGES:
        image = decode(path.read_bytes(), "ignore")
        expected = tensors_of(transform, image)
        found = ours(steps, (evaluation.mean, evaluation.std), image)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=path.name)


def test_the_file_of_evaluations_is_what_the_libraries_say_now(vision: Any) -> None:
    import msgspec

    assert msgspec.json.decode(FILE.read_bytes(), type=dict[str, Evaluation]) == dict(_evaluations())


# --- Pillow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", FILTERS)
def test_both_orders_of_pillow_are_known(resample: Any) -> None:
    """The installed Pillow is the oracle of its own order; two resizes in turn are that of the other one."""
    kind = getattr(Image.Resampling, resample.upper())

    def in_turn(image: Image.Image, *sizes: tuple[int, int]) -> np.ndarray:
        for size in sizes:
            image = image.resize(size, kind)
        return np.asarray(image)

    orders: Sequence[tuple[int, int]] = [
        (300, 900),
        (900, 300),
        (200, 1000),
        (224, 700),
        (50, 3000),
        (640, 480),
    ]
    for width, height in orders:
        image = photo(width, height)
        np.testing.assert_array_equal(
            np.asarray(resize(image, (96, 128), resample, newest=NEWEST_PILLOW)), in_turn(image, (128, 96))
        )
        rows_first = in_turn(image, (128, height), (128, 96))
        np.testing.assert_array_equal(np.asarray(resize(image, (96, 128), resample)), rows_first)


def test_a_photo_that_no_step_sizes_is_refused_when_it_is_large() -> None:
    from app.errors import BadImage

    with pytest.raises(BadImage, match=r"shown 2000 x 1500 pixels of this picture.*up to 2 megapixels"):
        Preprocess(())(Image.new("RGB", (2000, 1500)))
    with pytest.raises(BadImage, match="resized to 5120000 x 256"):
        Preprocess(read_torchvision("Compose([Resize(256), CenterCrop(224), ToTensor()])")[0])(
            Image.new("RGB", (20_000, 1))
        )


def test_gray_photos_become_gray_as_fastai_opens_them(vision: Any) -> None:
    for path in IMAGES:
        expected = np.asarray(vision.PILImageBW.create(path), np.float32)
        height, width = min(expected.shape[0], 300), min(expected.shape[1], 300)
        image = decode(path.read_bytes(), "ignore").crop((0, 0, width, height))
        (found,) = Preprocess((), (0.0,), (1.0,), "L")(image)
        np.testing.assert_allclose(found * 255, expected[:height, :width], atol=1e-4, err_msg=path.name)


def test_the_page_of_transforms_is_what_fastai_does_now(vision: Any) -> None:
    from tests.transforms import PAGE, page

    assert PAGE.read_text("utf-8") == page(vision)

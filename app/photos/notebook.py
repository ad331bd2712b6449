"""Transforms in the words of a notebook, as texts in the settings: `item_tfms = "Resize(460)"`."""

from collections.abc import Mapping
from typing import Any, Final

from app.errors import SettingsError
from app.photos.compose import read_compose
from app.photos.databunch import read_databunch
from app.photos.expressions import Text
from app.photos.transforms import Statistics, Step
from app.photos.validation import PICTURE, PIXELS, Transform, augmented, merge, placed, read_transforms

AUGMENTATIONS: Final = (
    "mult do_flip flip_vert max_rotate min_zoom max_zoom max_lighting max_warp p_affine p_lighting xtra_tfms "
    "size mode pad_mode align_corners batch min_scale"
)
FASTAI: Final = {name: parameters for name, (_, parameters) in (PICTURE | PIXELS).items()} | {
    "aug_transforms": AUGMENTATIONS,
    "Normalize.from_stats": "mean std dim ndim cuda",
}
EXPANDED: Final = {"aug_transforms": augmented}
NONE: Final[Statistics] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
TORCHVISION: Final = {
    "Compose": "transforms",
    "Resize": "size interpolation max_size antialias",
    "CenterCrop": "size",
    "ToTensor": "",
    "PILToTensor": "",
    "ToImage": "",
    "ConvertImageDtype": "dtype",
    "ToDtype": "dtype scale",
    "Normalize": "mean std inplace",
}
# fastai v1: only the second of its two lists is for validation, and get_transforms puts the crop there alone
FASTAI1: Final = {
    "databunch": "ds_tfms size resize_method padding_mode mode mult bs val_bs num_workers path device",
    "get_transforms": "do_flip flip_vert max_rotate max_zoom max_lighting max_warp p_affine p_lighting "
    "xtra_tfms",
    "crop_pad": "size padding_mode row_pct col_pct",
}


def read_fastai(item_tfms: str, batch_tfms: str) -> tuple[tuple[Step, ...], Statistics | None]:
    """The steps of a DataBlock's item_tfms and batch_tfms, and the statistics of their Normalize.

    Raises SettingsError.
    """
    items = Text("item_tfms", item_tfms, FASTAI, expanded=EXPANDED).transforms()
    batches = Text("batch_tfms", batch_tfms, FASTAI, expanded=EXPANDED).transforms()
    try:
        return read_transforms(
            merge([Transform("ToTensor", {}), *items]), merge([Transform("IntToFloatTensor", {}), *batches])
        )
    except ValueError as error:
        raise SettingsError(f"{error}.") from error


def read_fastai1(ds_tfms: str, usual: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps of a v1 databunch's `ds_tfms` and the arguments behind it; where they have no size,
    those of `usual`.

    Raises SettingsError.
    """
    text = Text("ds_tfms", f"databunch({ds_tfms})", FASTAI1, shift=len("databunch("))
    databunch = text.value()
    given = dict(databunch.arguments)
    try:
        with placed(databunch):
            return read_databunch(given if "size" in given else {**usual, **given})
    except ValueError as error:
        raise SettingsError(f"{error}.") from error


def read_torchvision(transforms: str) -> tuple[tuple[Step, ...], Statistics | None]:
    """The steps of a torchvision `Compose` for validation, and the statistics of its Normalize.

    Raises SettingsError.
    """
    text = Text("transforms", transforms, TORCHVISION)
    try:
        return read_compose(text.transforms())
    except ValueError as error:
        raise SettingsError(f"{error}.") from error


def read_texts(
    texts: Mapping[str, str], usual: Mapping[str, Any]
) -> tuple[tuple[Step, ...], Statistics | None]:
    """The steps that the texts of one library say, by the names of the settings. Raises SettingsError."""
    if text := texts.get("transforms"):
        steps, statistics = read_torchvision(text)
        return steps, statistics or NONE  # a Compose is all that there is
    if text := texts.get("ds_tfms"):
        return read_fastai1(text, usual), None
    return read_fastai(texts.get("item_tfms", ""), texts.get("batch_tfms", ""))

"""fastai's transforms with their options, as notebooks write them: the matrix compared with fastai."""

import itertools
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

SIZES: Final = ("128", "(96, 128)", "(200, 80)")
GPU_SIZES: Final = ("96", "(64, 96)", "160")
FILTERS: Final = tuple(
    f"(Image.Resampling.{name}, 0)"
    for name in ("BILINEAR", "BICUBIC", "LANCZOS", "NEAREST", "BOX", "HAMMING")
)
MODES: Final = ("'bilinear'", "'nearest'", "'bicubic'")
PAD_MODES: Final = ("'reflection'", "'border'", "'zeros'")
CORNERS: Final = ("True", "False")
AFFINE: Final = {"mode": MODES, "pad_mode": PAD_MODES, "align_corners": CORNERS}


class Notebook(NamedTuple):
    """The transforms of a DataBlock."""

    item_tfms: str
    batch_tfms: str = "[]"


# Of each transform its options at validation; the first value of each is used where another is tried.
ITEMS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "CropPad": {"size": SIZES, "pad_mode": ("PadMode.Zeros", "PadMode.Border", "PadMode.Reflection")},
    "OldRandomCrop": {"size": SIZES, "pad_mode": ("'zeros'", "'border'")},
    "RandomCrop": {"size": SIZES},
    "RandomResizedCrop": {
        "size": SIZES,
        "min_scale": ("0.08", "0.5"),
        "val_xtra": ("0.14", "0.", "0.35"),
        "resamples": FILTERS,
    },
    "RatioResize": {"max_sz": ("160", "80"), "resamples": FILTERS},
    "Resize": {
        "size": SIZES,
        "method": ("ResizeMethod.Crop", "ResizeMethod.Squish", "ResizeMethod.Pad"),
        "pad_mode": PAD_MODES,
        "resamples": FILTERS,
    },
}
BATCHES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "AffineCoordTfm": {"size": GPU_SIZES, **AFFINE},
    "aug_transforms": {
        "size": ("96", "None", "(64, 96)", "160"),
        "min_scale": ("1.", "0.75"),
        **AFFINE,
        "do_flip": ("True", "False"),
        "flip_vert": ("False", "True"),
        "max_rotate": ("10.", "0."),
        "batch": ("False", "True"),
    },
    "DeterministicDihedral": {"size": ("96",)},
    "DeterministicFlip": {"size": ("96",), **AFFINE},
    "Dihedral": {"size": ("96", "None"), **AFFINE},
    "Flip": {"size": ("96", "None"), **AFFINE},
    "IntToFloatTensor": {"div": ("255.", "128.")},
    "Normalize.from_stats": {
        "mean": ("[0.485, 0.456, 0.406]", "[0.1, 0.2, 0.3]"),
        "std": ("[0.229, 0.224, 0.225]", "[0.4, 0.5, 0.6]"),
    },
    "RandomResizedCropGPU": {
        "size": ("96", "None", "(64, 96)"),
        "ratio": ("(3/4, 4/3)", "(1, 1)", "(0.4, 0.6)"),
        "valid_scale": ("1.", "0.8"),
        "mode": MODES,
    },
    "Rotate": {"size": ("96", "None"), "max_deg": ("10", "45"), **AFFINE},
    "Warp": {"size": ("96", "None"), **AFFINE},
    "Zoom": {"size": ("96", "None"), "max_zoom": ("1.1", "2."), **AFFINE},
}
ROWS: Final = [  # several in a row
    Notebook("[Resize(200), RandomCrop(128)]"),
    Notebook("[CropPad(180), Resize(96)]"),
    Notebook("[RandomResizedCrop(192), Resize(128, method='pad')]"),
    Notebook("[FlipItem(), DihedralItem(), Resize(128), ToTensor()]"),
    Notebook("[Resize(64), Resize(96)]"),  # of one class the last counts
    Notebook(
        "Resize(200)", "[*aug_transforms(size=128, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]"
    ),
    Notebook("RandomResizedCrop(200)", "[*aug_transforms(size=(96, 128)), Normalize()]"),
    Notebook("Resize((240, 100))", "[Rotate(), Zoom(), Brightness(), RandomErasing()]"),  # each of them blurs
    Notebook("Resize(230)", "[Rotate(10, size=160), Zoom(size=128), Hue()]"),
    Notebook("Resize(128)", "[IntToFloatTensor(div=100.), Normalize.from_stats(*cifar_stats)]"),
    Notebook("Resize(128)", "[Resize(64), *aug_transforms(), Normalize.from_stats(*mnist_stats)]"),
]


def one_at_a_time(name: str) -> Iterator[Notebook]:
    """Each value of each option, beside the first value of the others."""
    options = (ITEMS | BATCHES)[name]
    first = {option: values[0] for option, values in options.items()}
    yield _notebook(name, first)
    for option, values in options.items():
        for value in values[1:]:
            yield _notebook(name, {**first, option: value})


def all_of(name: str) -> Iterator[Notebook]:
    """Every combination of the values, or about 200 of them, evenly spread."""
    options = (ITEMS | BATCHES)[name]
    step = max(1, math.prod(map(len, options.values())) // 200)
    for values in itertools.islice(itertools.product(*options.values()), 0, None, step):
        yield _notebook(name, dict(zip(options, values, strict=True)))


def _notebook(name: str, arguments: dict[str, str]) -> Notebook:
    call = f"{name}({', '.join(f'{option}={value}' for option, value in arguments.items())})"
    if name in ITEMS:
        return Notebook(call)
    return Notebook("Resize((140, 180), method='squish')", call)

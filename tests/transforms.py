"""Write docs/transforms.md with `python -m tests.transforms`: every transform of fastai, tried."""

import inspect
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from app.errors import SettingsError
from app.photos.notebook import read_fastai
from app.photos.validation import PICTURE
from tests.conftest import ROOT
from tests.matrix import BATCHES, ITEMS
from tests.photos.test_notebook import as_fastai_does, ours
from tests.photos.test_transforms import photo

PAGE: Final = ROOT / "docs" / "transforms.md"
ARGUMENTS: Final = {  # where fastai asks for some
    "IntToFloatTensor": "div=128.",
    "RatioResize": "max_sz=96",
    "Normalize": "mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]",
    **dict.fromkeys(
        "Resize RandomResizedCrop CropPad OldRandomCrop RandomCrop RandomResizedCropGPU AffineCoordTfm Flip "
        "Dihedral Rotate Zoom Warp DeterministicFlip aug_transforms".split(),
        "size=96",
    ),
}
HEAD: Final = """# Transforms

The server makes pixels of a photo as your notebook did at validation. It reads the transforms from the file
of `learn.export()`. A file of `learn.save()` holds none: copy them from your notebook into the settings.

For fastai v2, copy the two arguments of your `DataBlock` or `ImageDataLoaders`:

```toml
item_tfms = "Resize(460)"
batch_tfms = "[*aug_transforms(size=224, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]"
```

For fastai v1, copy the arguments of `.databunch()` or `.transform()` into `ds_tfms`, beginning with the value
of `ds_tfms`. Copy the statistics of `.normalize()` into `mean` and `std`:

```toml
ds_tfms = "get_transforms(), size=224, resize_method=ResizeMethod.SQUISH"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
```

For torchvision, copy the `Compose` of your validation:

```toml
transforms = "Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize([.5, .4, .3], [.2, .2, .2])])"
```

The texts are parsed as Python and never run. They may hold calls of the transforms below with literal
arguments. Anything else is refused, and the message names its line and column. For the four most common
pipelines the setting `pipeline` is shorter.

Where neither the file nor the settings name the transforms, the size or the statistics, the server guesses.
It then writes one warning at start, which `inspect` repeats. For a network with the head of torchvision, timm
or ultralytics, the guess is the evaluation transform of that library for that architecture.

The server differs from fastai in four points:

- The server turns photos upright, and fastai does not. `exif = "ignore"` switches this off.
- `RatioResize` of fastai cuts up to a few rows at a random side, even in `predict`. Here the center is kept.
- If no transform resizes a photo, the server refuses photos over 2 megapixels.
- Pillow 13 and later round differently when they squish a tall photo. The server rounds as earlier ones do;
  set `pillow` to the version in your notebook.

## How many exports are served

`python -m benchmarks.exports` writes random notebooks as people write them. It runs them with fastai, and
compares each served export with `learn.predict` on eight photos. On 2026-11-26, with fastai 2.8.12 and Pillow
13, fastai itself could run 241 of 259 notebooks:

| exports | number |
|---|---|
| served, every probability within 0.001 of `learn.predict` | 226 (94 %) |
| refused by name: a transform of the notebook's own | 11 |
| refused by name: timm's resnetblur18, which is not rebuilt | 4 |
| served with other probabilities | 0 |

The first run found faults. They are mended, and the ten exports that they concerned ran again. Of the 230
exports without a transform of the notebook's own, 98 % are served.

## fastai's transforms at prediction

Each value of each listed option is compared with fastai's own `learn.predict`: no probability differs by more
than 0.001. `make test-all` compares the combinations as well.

| transform | at prediction | compared options |
|---|---|---|
"""


def effect(vision: Any, name: str) -> str:
    """What a transform of fastai's is here, confirmed by its pixels."""
    text = f"{name}({ARGUMENTS.get(name, '')})"
    items, batches = (text, "") if name in PICTURE else ("Resize(140)", text)
    try:
        steps, statistics = read_fastai(items, batches)
    except SettingsError:
        return "refused"
    image = photo(320, 200)
    if name != "RatioResize":  # which is random
        expected = as_fastai_does(
            vision, items, batches.replace("Normalize(", "Normalize.from_stats("), image
        )
        np.testing.assert_allclose(ours(steps, statistics, image), expected, atol=2e-3, err_msg=name)
    without, _ = read_fastai(*(("", "") if name in PICTURE else ("Resize(140)", "")))
    return "served" if (steps, statistics) != (without, None) else "changes nothing"


def options(name: str) -> str:
    """The options of a transform in the matrix, with their values."""
    compared = (ITEMS | BATCHES).get(name) or BATCHES.get(f"{name}.from_stats", {})
    return "; ".join(f"{option} {', '.join(map(short, values))}" for option, values in compared.items())


def short(value: str) -> str:
    """A value without the name of its class or its quotes."""
    return re.sub(r"^\((\w+), 0\)$", r"\1", re.sub(r"\w+\.(?=[A-Za-z])", "", value)).strip("'")


def page(vision: Any) -> str:
    """Return the page."""
    import fastai.data.transforms as data
    import fastai.vision.augment as augment

    modules = [
        vars(augment),
        {name: getattr(data, name) for name in ("ToTensor", "IntToFloatTensor", "Normalize")},
    ]
    classes = {
        name: found
        for names in modules
        for name, found in names.items()
        if inspect.isclass(found) and issubclass(found, vision.Transform)
        and found.__module__.startswith(("fastai.vision.augment", "fastai.data.transforms"))
        and (name in augment.__all__ or names is not modules[0])
    }  # fmt: skip
    rows = [
        f"| `{name}` | {effect(vision, name)} | {options(name)} |"
        for name in sorted([*classes, "aug_transforms"], key=str.lower)
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    from app.graphs.bodies import import_fastai

    Path(PAGE).write_text(page(import_fastai()), "utf-8")

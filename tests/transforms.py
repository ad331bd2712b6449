"""Write docs/transforms.md with `python -m tests.transforms`: every transform of fastai, tried."""

import inspect
from pathlib import Path
from typing import Any, Final

import numpy as np

from app.errors import SettingsError
from app.photos.notebook import read_fastai
from app.photos.validation import PICTURE
from tests.conftest import ROOT
from tests.photos.test_notebook import as_fastai_does, ours
from tests.photos.test_transforms import photo

PAGE: Final = ROOT / "docs" / "transforms.md"
ARGUMENTS: Final = {  # where fastai asks for some
    "RatioResize": "max_sz=96",
    "Normalize": "mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]",
    **dict.fromkeys(
        "Resize RandomResizedCrop CropPad OldRandomCrop RandomCrop RandomResizedCropGPU AffineCoordTfm Flip "
        "Dihedral Rotate Zoom Warp DeterministicFlip".split(),
        "size=96",
    ),
}
HEAD: Final = """# Transforms

How your notebook makes pixels of a photo is read from an export, or said in the settings in the
notebook's own words:

```toml
item_tfms = "Resize(460)"
batch_tfms = "[*aug_transforms(size=224, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]"
```

For fastai v1, `ds_tfms` takes the arguments from `ds_tfms=` on, and `mean` and `std` those that
`normalize()` has:

```toml
ds_tfms = "get_transforms(), size=224, resize_method=ResizeMethod.SQUISH"
```

For torchvision, `transforms` is the `Compose` of your validation:

```toml
transforms = "Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize([.5, .4, .3], [.2, .2, .2])])"
```

The texts are parsed and never run. They may hold calls of known names with literal arguments; everything
else is refused with its place. `pipeline` names the four that people use most. A fact that neither the file
nor the settings say is guessed, and one warning at start and in `inspect` names the guess. For a head of
torchvision or timm the guess is how that library evaluates the architecture.

`RatioResize` cuts the pixels of its rounding at a random side, also when it predicts; here the center is
kept. A photo that no transform sizes may have up to 2 megapixels. `pillow` is the version of Pillow in
your notebook: from 13 on, tall photos that are squished are rounded otherwise.

## fastai's transforms at prediction

| transform | at validation |
|---|---|
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
    rows = [f"| `{name}` | {effect(vision, name)} |" for name in sorted(classes)]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    from app.graphs.bodies import import_fastai

    Path(PAGE).write_text(page(import_fastai()), "utf-8")

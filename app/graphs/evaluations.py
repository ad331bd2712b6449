"""How torchvision, timm and ultralytics evaluate their own networks: sizes, filter and statistics.

`evaluations.json` beside this module is written by `python -m app.graphs.evaluations` from the two libraries:
torchvision 0.28's first published weights, timm 1.0.31's default ones.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from app.graphs.graph import shipped_graphs
from app.graphs.index import read_index
from app.photos.resample import Filter
from app.photos.torchvision_steps import CenterCrop, TorchvisionResize
from app.photos.transforms import Step
from app.types import Size

FILE: Final = Path(__file__).with_name("evaluations.json")


class Evaluation(Struct, frozen=True):
    """`resize` is the new length of the shorter side, `crop` the side of the center for the network.

    With `squash` both sides become `resize`. `resample` is Pillow's name of the filter.
    """

    library: str
    resize: int
    crop: int
    resample: Filter
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False

    def steps(self, size: Size | None = None) -> tuple[Step, ...]:
        """Return torchvision's transforms that do this, scaled to another size where one is given."""
        crop = size or (self.crop, self.crop)
        if self.library == ULTRALYTICS.library and crop[0] != crop[1]:
            return (TorchvisionResize(crop),)
        resize = round(self.resize * min(crop) / self.crop)
        target = (resize, resize) if self.squash else resize
        return TorchvisionResize(target, self.resample), CenterCrop(crop)


# ultralytics 8.4 data/augment.py, classify_transforms, which all of its classifiers have
ULTRALYTICS: Final = Evaluation("ultralytics", 224, 224, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def evaluation_of(architecture: str, writer: str = "") -> Evaluation | None:
    """Return how an architecture's library evaluates it; None where it has published no weights.

    `writer` is the library that wrote the file.
    """
    if writer == ULTRALYTICS.library:
        return ULTRALYTICS
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Evaluation]).get(architecture)


def _evaluations() -> Iterator[tuple[str, Evaluation]]:
    """Yield the libraries' configuration of every shipped graph, also under its other names."""
    from app.graphs.bodies import TRANSFORMED, import_fastai

    models = import_fastai().models
    index = read_index()
    for graph in shipped_graphs():
        name = graph.architecture
        torchvision = name.removesuffix(TRANSFORMED)
        if hasattr(models, torchvision) and not name.startswith(
            "x"
        ):  # fastai's xresnets were never published
            yield name, _of_torchvision(torchvision)
        elif found := _of_timm(name.removeprefix("timm.")):
            yield name, found
        for alias in index[name].aliases if name in index else ():
            if found := _of_timm(alias):
                yield alias, found


def _of_torchvision(name: str) -> Evaluation:
    import importlib

    models = importlib.import_module("torchvision.models")
    first: Any = next(iter(models.get_model_weights(name)))
    preset = first.transforms()
    return Evaluation(
        "torchvision",
        preset.resize_size[0],
        preset.crop_size[0],
        preset.interpolation.value,
        tuple(preset.mean),
        tuple(preset.std),
    )


def _of_timm(name: str) -> Evaluation | None:
    import importlib

    timm = importlib.import_module("timm")
    if not timm.is_model(name):  # fastai's own
        return None
    older = importlib.import_module("timm.models._registry")._deprecated_models
    tagged = older.get(name, name)
    try:
        configuration = timm.get_pretrained_cfg(tagged)
    except RuntimeError:  # weights that timm no longer has
        configuration = timm.get_pretrained_cfg(tagged.partition(".")[0])
    if configuration is None or configuration.crop_mode == "border":
        return None
    crop = configuration.input_size[1]
    return Evaluation(
        "timm",
        math.floor(crop / configuration.crop_pct),
        crop,
        configuration.interpolation,
        tuple(configuration.mean),
        tuple(configuration.std),
        configuration.crop_mode == "squash",
    )


if __name__ == "__main__":
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(dict(_evaluations()))) + b"\n")

"""Resolving: the settings completed by the file, as the recipe by which photos become answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from app.checkpoints.reader import Checkpoint
from app.engines.contract import Recognized
from app.errors import CheckpointError, ClassesMismatch, SettingsError, plain
from app.photos.decode import Exif
from app.photos.transforms import Preprocess
from app.serving.pixels import OF_PIXELS, TEXTS, choose_pixels
from app.settings import DEMO, HINTS, PrecisionName, Settings, check

DEMO_TRANSFORMS: Final = {  # of examples/train_garments.py
    "item_tfms": "Resize(224)",
    "batch_tfms": "[*aug_transforms(), Normalize.from_stats(*imagenet_stats)]",
}
WAYS: Final = ("pipeline", *TEXTS)  # of choosing the pixels in the settings, which overrule the file


class Recipe(Struct, frozen=True, kw_only=True):
    """How photos become answers: the settings, completed by the checkpoint.

    Each field is the setting of that name; `labels` are the classes where that is empty. `notes` are warnings
    for the owner. `raw_scores` names the loss with which the notebook's own `predict` answers raw scores.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...]
    preprocess: Preprocess
    exif: Exif
    jpeg_downscale: bool
    multi_label: bool
    threshold: float
    unsure_below: float
    unfamiliar_below: float
    engine: str
    precision: PrecisionName
    notes: tuple[str, ...] = ()
    raw_scores: str = ""
    show_proof: bool = False


def resolve(settings: Settings, checkpoint: Checkpoint, network: Recognized) -> Recipe:
    """Return the settings with everything that the file decides filled in where they are silent.

    Raises CheckpointError if the file needs something that is not reproduced, ClassesMismatch, SettingsError.
    """
    if checkpoint.export and checkpoint.export.unserved and not any(map(settings.is_set, WAYS)):
        raise CheckpointError(
            f"The file is a {checkpoint.export.writer}, and {'; '.join(checkpoint.export.unserved)}. Set "
            "item_tfms and batch_tfms to the nearest served ones, and compare with a proof."
        )
    _check_inside(settings, network)
    file = {**checkpoint.known, **network.known}
    demo = DEMO_TRANSFORMS if Path(settings.model_url) == DEMO else {}
    pixels = choose_pixels(settings, {**file, **demo}, network)
    known = {name: value for name, value in file.items() if name not in OF_PIXELS}
    if network.labels:
        known["classes"] = network.labels
    if network.binary:  # its one output is computed as two, of which one is right
        known["multi_label"] = False
    silent = {name for name in known if not settings.is_set(name)}
    notes = [*pixels.notes]
    notes += [
        f"{name} is {shown(getattr(settings, name))} in the settings, but the file says {shown(value)}: "
        "the setting is used"
        for name, value in known.items()
        if name not in {*silent, "classes"} and not _same(getattr(settings, name), value)
    ]
    notes += checkpoint.warnings
    complete = _with_overrides(settings, {name: known[name] for name in silent})
    notes += _check_classes(complete.classes, known.get("classes", ()), network.outputs)
    return Recipe(
        classes=complete.classes,
        labels=_labels(complete),
        preprocess=pixels.preprocess,
        exif=complete.exif,
        jpeg_downscale=complete.jpeg_downscale,
        multi_label=complete.multi_label,
        threshold=complete.threshold,
        unsure_below=complete.unsure_below,
        unfamiliar_below=complete.unfamiliar_below,
        show_proof=complete.show_proof,
        engine=complete.engine,
        precision=complete.precision,
        notes=tuple(notes),
        raw_scores=checkpoint.export.raw_scores if checkpoint.export else "",
    )


def _check_inside(settings: Settings, network: Recognized) -> None:
    """Raise SettingsError where the settings contradict a preprocessing inside the network."""
    inside = sorted(name for name in (*OF_PIXELS, "multi_label") if settings.is_set(name))
    if network.known and inside:
        raise SettingsError(
            f"The model holds its own preprocessing and answers with probabilities: take {', '.join(inside)} "
            "out of the settings, or export the checkpoint with them."
        )


def _with_overrides(settings: Settings, known: Mapping[str, Any]) -> Settings:
    """Return the settings with a checkpoint's own values. Raises SettingsError if one cannot be served."""
    values = {name: getattr(settings, name) for name in (*HINTS, "explicit")}
    try:
        merged = {name: value for name, value in (values | dict(known)).items() if name != "classes" or value}
        result = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as error:
        expected, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition("[")[0]
        raise SettingsError(
            f"The checkpoint says {name} is {plain(repr(known.get(name)))}. {expected}. Set {name} in the "
            "settings."
        ) from error
    check(result)
    return result


def _check_classes(classes: Sequence[str], known: Sequence[str], outputs: int) -> list[str]:
    """Return warnings. Raises ClassesMismatch if the names cannot be those of the outputs."""
    if not classes:
        raise ClassesMismatch(
            f"The file has {outputs} outputs and does not say their names: list all {outputs} in the setting "
            "classes, in the order of your notebook: learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if known and list(classes) != list(known):
        raise ClassesMismatch(
            f"The setting classes lists {plain(', '.join(classes))}, but the file itself says "
            f"{plain(', '.join(known))}: take classes out of the settings."
        )
    if outputs != len(classes):
        raise ClassesMismatch(
            f"The checkpoint has {outputs} outputs, the setting classes lists {len(classes)} names "
            f"({plain(', '.join(classes))}). List all {outputs} in the order of your notebook: "
            "learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if not known and list(classes) != sorted(classes):
        return [
            "the class list is not in alphabetical order, but fastai sorts classes unless told otherwise: "
            "compare it with learn.dls.vocab, or every answer may be wrong (sorted: "
            f"{', '.join(sorted(classes))})"
        ]
    return []


def _labels(settings: Settings) -> tuple[str, ...]:
    """Return the names that people read. Raises SettingsError if they are not as many as the classes."""
    labels, classes = settings.labels, settings.classes
    if labels and len(labels) != len(classes):
        raise SettingsError(
            f"labels has {len(labels)} names, but there are {len(classes)} classes "
            f"({plain(', '.join(classes))}): list one name for each class, in their order."
        )
    return labels or classes


def _same(setting: Any, known: Any) -> bool:
    if isinstance(known, tuple) and known and isinstance(known[0], float):
        return bool(np.allclose(setting, known, atol=1e-4))  # the file's are float32
    return bool(setting == known)


def shown(value: Any) -> str:
    """Return a setting as JSON, as people write it."""
    return json.dumps(rounded(value), ensure_ascii=False)


def rounded(value: Any) -> Any:
    """Return the value with numbers of six digits: statistics in files are float32."""
    if isinstance(value, tuple):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value

"""Resolving: the settings completed by the file, as the recipe by which photos become answers."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from app.checkpoints.reader import Checkpoint
from app.engines.contract import Recognized
from app.errors import CheckpointError, ClassesMismatch
from app.photos.decode import Exif
from app.photos.transforms import Preprocess
from app.settings import PrecisionName, Settings, with_overrides


class Recipe(Struct, frozen=True, kw_only=True):
    """How photos become answers: the settings, completed by the checkpoint.

    The fields mean what the settings of the same names mean; `notes` are warnings for the owner.
    """

    classes: tuple[str, ...]
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


def resolve(settings: Settings, checkpoint: Checkpoint, network: Recognized) -> Recipe:
    """Return the settings with everything that the file decides filled in where they are silent.

    Raises CheckpointError if the file needs something that is not reproduced, ClassesMismatch, SettingsError.
    """
    if checkpoint.export and checkpoint.export.unserved and not settings.is_set("pipeline"):
        raise CheckpointError(
            f"The file is a {checkpoint.export.writer}, and {'; '.join(checkpoint.export.unserved)}. Set "
            "pipeline (with image_size and what belongs to it) to what comes nearest, and compare with a "
            "proof."
        )
    known = {"pipeline": "fastai1" if network.generation == 1 else "resize", **checkpoint.known}
    if network.size:
        known["image_size"] = network.size
    silent = {name for name in known if not settings.is_set(name) or getattr(settings, name) == "auto"}
    notes = [
        f"{name} is {shown(getattr(settings, name))} in the settings, but the file says {shown(value)}: "
        "the setting is used"
        for name, value in checkpoint.known.items()
        if name not in {*silent, "classes"} and not _same(getattr(settings, name), value)
    ]
    notes += checkpoint.warnings
    complete = with_overrides(settings, {name: known[name] for name in silent})
    if network.size and complete.image_size != network.size:
        raise CheckpointError(
            "The network takes pictures of {} x {} px only, but image_size is {}: take it out of the "
            "settings.".format(*network.size, complete.image_size)
        )
    notes += _check_classes(complete.classes, checkpoint.known.get("classes", ()), network.outputs)
    return Recipe(
        classes=complete.classes,
        preprocess=_preprocess(complete),
        exif=complete.exif,
        jpeg_downscale=complete.jpeg_downscale,
        multi_label=complete.multi_label,
        threshold=complete.threshold,
        unsure_below=complete.unsure_below,
        unfamiliar_below=complete.unfamiliar_below,
        engine=complete.engine,
        precision=complete.precision,
        notes=tuple(notes),
    )


def _preprocess(complete: Settings) -> Preprocess:
    """Return the pipeline that complete settings name."""
    return Preprocess(
        pipeline="resize" if complete.pipeline == "auto" else complete.pipeline,
        size=complete.image_size,
        method=complete.resize_method,
        pad_mode=complete.pad_mode,
        presize=complete.presize,
        val_xtra=complete.val_xtra,
        mean=complete.mean,
        std=complete.std,
    )


def _check_classes(classes: Sequence[str], known: Sequence[str], outputs: int) -> list[str]:
    """What to warn of. Raises ClassesMismatch where the names cannot be those of the outputs."""
    if not classes:
        raise ClassesMismatch(
            f"The file has {outputs} outputs and does not say their names: list all {outputs} in the setting "
            "classes, in the order of your notebook: learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if known and list(classes) != list(known):
        raise ClassesMismatch(
            f"The setting classes lists {', '.join(classes)[:200]}, but the file itself says "
            f"{', '.join(known)[:200]}: take classes out of the settings."
        )
    if outputs != len(classes):
        raise ClassesMismatch(
            f"The checkpoint has {outputs} outputs, the setting classes lists {len(classes)} names "
            f"({', '.join(classes)[:200]}). List all {outputs} in the order of your notebook: "
            "learn.dls.vocab in fastai v2, data.classes in v1."
        )
    if not known and list(classes) != sorted(classes):
        return [
            "the class list is not in alphabetical order, but fastai sorts classes unless told otherwise: "
            "compare it with learn.dls.vocab, or every answer may be wrong (sorted: "
            f"{', '.join(sorted(classes))})"
        ]
    return []


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

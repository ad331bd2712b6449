"""How photos become pixels: by the settings, else by the file, else by the library of the network.

One sentence names every guess, and the settings that replace it.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from app.engines.contract import Recognized
from app.errors import CheckpointError, SettingsError
from app.graphs.evaluations import Evaluation, evaluation_of
from app.photos.notebook import NONE, read_texts
from app.photos.resample import NEW_ORDER
from app.photos.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PipelineName,
    Preprocess,
    Statistics,
    Step,
    name_of,
    named_pipeline,
)
from app.settings import Settings

TEXTS: Final = ("item_tfms", "batch_tfms", "ds_tfms", "transforms")  # settings in the words of a notebook
NAMED: Final = ("image_size", "resize_method", "pad_mode", "presize", "val_xtra")  # that belong to a pipeline
OF_PIXELS: Final = frozenset((*TEXTS, *NAMED, "pipeline", "mean", "std", "gray"))
GRAY_NONE: Final[Statistics] = ((0.0,), (1.0,))


class Pixels(Struct, frozen=True):
    """The preprocessing of photos, and notes for the owner on how it was chosen."""

    preprocess: Preprocess
    notes: tuple[str, ...] = ()


class _Chosen(Struct):
    """The choice so far; `guessed` has a phrase for each part that neither settings nor file decide."""

    steps: tuple[Step, ...]
    statistics: Statistics | None = None
    notes: list[str] = []
    guessed: list[str] = []


def choose_pixels(settings: Settings, known: Mapping[str, Any], network: Recognized) -> Pixels:
    """Return how photos become pixels; `known` are the settings that the file decides.

    Raises SettingsError where settings contradict each other or cannot be repeated, CheckpointError.
    """
    evaluation = evaluation_of(network.architecture, network.writer)
    chosen = _steps(settings, known, network, evaluation)
    gray = settings.gray or bool(known.get("gray")) or network.channels == 1
    mean, std = _statistics(settings, known, chosen, evaluation, network)
    preprocess = Preprocess(chosen.steps, mean, std, "L" if gray else "RGB", _newest(settings.pillow))
    if network.size and preprocess.size != network.size:
        raise CheckpointError(
            "The network takes pictures of {} x {} px only, but is shown {} by {}: say a size of {}.".format(
                *network.size,
                "{} x {}".format(*preprocess.size) if preprocess.size else "photos as they are",
                ", ".join(preprocess.words) or "no transform",
                network.size[0],
            )
        )
    notes = list(chosen.notes)
    if chosen.guessed:
        notes.append(_guess(chosen, preprocess))
    return Pixels(preprocess, tuple(notes))


def _newest(pillow: str) -> bool:
    return bool(pillow) and int(pillow.partition(".")[0]) >= NEW_ORDER


# --- the steps ---------------------------------------------------------------------------------------------


def _steps(
    settings: Settings, known: Mapping[str, Any], network: Recognized, evaluation: Evaluation | None
) -> _Chosen:
    """Choose the steps, and the statistics where a text says them."""
    texts = [name for name in TEXTS if settings.is_set(name)]
    named = settings.pipeline != "auto"
    own = [name for name in NAMED if settings.is_set(name)]
    _check_alone(settings, texts, named, own)
    file_texts = {name: str(known.get(name, "")) for name in TEXTS}
    file = _Chosen(*read_texts(file_texts, {})) if any(file_texts.values()) else None
    if texts:
        usual = {
            "size": settings.image_size,
            "resize_method": settings.resize_method,
            "padding_mode": settings.pad_mode,
        }
        chosen = _Chosen(*read_texts({name: getattr(settings, name) for name in TEXTS}, usual))
        if texts == ["ds_tfms"] and "size" not in settings.ds_tfms and "image_size" not in own:
            chosen.guessed.append(_size_guess(chosen))
        chosen.statistics = chosen.statistics or (file.statistics if file else None)
        if file and file.steps != chosen.steps:
            chosen.notes.append(
                f"the settings say {_words(chosen)}, but the file says {_words(file)}: the settings are used"
            )
        return chosen
    if named or (file and own):
        return _named(settings, own, file)
    if file:
        return file
    return _guessed(settings, own, network, evaluation)


def _check_alone(settings: Settings, texts: list[str], named: bool, own: list[str]) -> None:
    """Raise SettingsError where two ways of saying the same are set."""
    ways = {"item_tfms": "item_tfms", "batch_tfms": "item_tfms"}
    said = sorted({ways.get(name, name) for name in texts} | ({"pipeline"} if named else set()))
    if len(said) > 1:
        raise SettingsError(f"{' and '.join(said)} both say how photos are sized: keep one of them.")
    sizeless = texts == ["ds_tfms"] and "size" not in settings.ds_tfms
    allowed = ("image_size", "resize_method", "pad_mode") if sizeless else ()
    if texts and (idle := [name for name in own if name not in allowed]):
        raise SettingsError(
            f"{' and '.join(idle)} would do nothing beside {texts[0]}: say it there, or take it out."
        )


def _named(settings: Settings, own: list[str], file: _Chosen | None) -> _Chosen:
    """Return the pipeline with a name: by the settings, then by the file, then by the defaults."""
    of_file = name_of(file.steps) if file else {}
    if of_file is None:
        if settings.pipeline == "auto":
            raise SettingsError(
                f"{' and '.join(own)} cannot be changed alone, since the photos of this file are made by "
                f"{_words(file)}: say item_tfms and batch_tfms instead."
            )
        of_file = {}
    said = {name: getattr(settings, name) for name in own}
    if settings.pipeline != "auto":
        said["pipeline"] = settings.pipeline
    notes = [
        f"{name} is {json.dumps(value)} in the settings, but the file says {json.dumps(of_file[name])}: the "
        "setting is used"
        for name, value in said.items()
        if name in of_file and of_file[name] != value
    ]
    defaults = {name: getattr(settings, name) for name in NAMED}
    values = {**defaults, **of_file, **said}
    chosen = _Chosen(
        named_pipeline(
            values["pipeline"],
            values["image_size"],
            values["resize_method"],
            values["pad_mode"],
            values["presize"],
            values["val_xtra"],
        ),
        file.statistics if file else None,
        notes,
    )
    if not of_file and "image_size" not in own:
        chosen.guessed.append(_size_guess(chosen))
    return chosen


def _guessed(
    settings: Settings, own: list[str], network: Recognized, evaluation: Evaluation | None
) -> _Chosen:
    """Return the default of the network's library."""
    size = settings.image_size if "image_size" in own else network.size
    if network.generation == 0 and evaluation and set(own) <= {"image_size"}:
        chosen = _Chosen(evaluation.steps(size))
    else:
        name: PipelineName = "fastai1" if network.generation == 1 else "resize"
        steps = named_pipeline(name, size or settings.image_size, settings.resize_method, settings.pad_mode)
        chosen = _Chosen(steps)
    if network.generation != 1 or "image_size" not in own:
        chosen.guessed.append(
            _size_guess(chosen) if network.generation == 1 else f"the transforms {_words(chosen)}"
        )
    return chosen


# --- the statistics ----------------------------------------------------------------------------------------


def _statistics(
    settings: Settings,
    known: Mapping[str, Any],
    chosen: _Chosen,
    evaluation: Evaluation | None,
    network: Recognized,
) -> Statistics:
    """Return mean and standard deviation: by the settings, the transforms, the file, or the library."""
    said = [name for name in ("mean", "std") if settings.is_set(name)]
    of_file = (tuple(known["mean"]), tuple(known["std"])) if {"mean", "std"} <= known.keys() else None
    found = chosen.statistics or of_file
    if len(said) < 2 and not found:
        library = "ImageNet's"
        found = (IMAGENET_MEAN, IMAGENET_STD)
        if network.channels == 1:
            found, library = GRAY_NONE, "none, as for gray pictures"
        elif evaluation and evaluation.library != "torchvision" and network.generation != 1:
            found, library = (evaluation.mean, evaluation.std), f"those of {evaluation.library}"
        chosen.guessed.append(f"mean {list(found[0])} and std {list(found[1])} ({library})")
    mean, std = found or (settings.mean, settings.std)
    own = (settings.mean if "mean" in said else mean, settings.std if "std" in said else std)
    if found and said and not _close(own, found) and (chosen.statistics or of_file):
        chosen.notes.append(
            f"mean and std are {list(own[0])} and {list(own[1])} in the settings, but "
            f"{list(found[0])} and {list(found[1])} in the transforms: the settings are used"
        )
    if network.channels == 1 and own == NONE:
        return GRAY_NONE  # three channels are how settings say that nothing normalizes
    if network.channels == 1 and len(own[0]) != 1:
        raise SettingsError(
            f"The network takes gray pictures, of one channel, but mean is {list(own[0])}: say one number in "
            "mean and in std."
        )
    return own


def _close(own: Statistics, found: Statistics) -> bool:
    return all(
        len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))
        for a, b in zip(own, found, strict=True)
    )


# --- words -------------------------------------------------------------------------------------------------


def _words(chosen: _Chosen | None) -> str:
    return ", ".join(map(str, chosen.steps)) if chosen and chosen.steps else "no transform that sizes photos"


def _size_guess(chosen: _Chosen) -> str:
    return f"the size in {_words(chosen)}"


def _guess(chosen: _Chosen, preprocess: Preprocess) -> str:
    """Return the sentence that names the guesses, and the settings that replace them."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in preprocess.as_settings().items()]
    return (
        f"guessed, since neither the file nor the settings say it: {'; '.join(chosen.guessed)}. If your "
        "notebook did otherwise, every answer may be wrong. Write your notebook's in settings.toml, or "
        f"confirm the guess with: {'; '.join(lines)}"
    )

"""The settings that would make the answers those of the notebook: the usual mistakes, alone and in pairs."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from app.engines.contract import Bind, Output
from app.photos.decode import Exif, decode
from app.photos.steps import ResizeMethod
from app.photos.torchvision_steps import CenterCrop, TorchvisionResize
from app.photos.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PIPELINES,
    USUAL_SIZE,
    Preprocess,
    Step,
    named_pipeline,
)
from app.serving.proof import TOLERANCE, Proof, ProofPhoto, agree
from app.types import Size

OTHER_SIZES: Final = (64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 300, 320, 384, 448, 460, 512)
STATISTICS: Final = (
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
TRIED: Final = (
    "exif, pipeline, resize_method, transforms, image_size, mean and std, pillow, the order of the classes"
)


class Case(Struct, frozen=True):
    """A way to read photos."""

    preprocess: Preprocess
    exif: Exif


class Suspect(Struct, frozen=True):
    """A usual mistake: the setting that would mend it, and the change it makes."""

    setting: str
    change: Callable[[Case], Case]


def diagnose(proof: Proof, bind: Bind, preprocess: Preprocess, exif: Exif, answers: Sequence[Output]) -> str:
    """Return the sentence that names the settings with which all photos agree, if one or two would do."""
    case = Case(preprocess, exif)
    # the photo that is furthest off goes first: most suspects are dismissed by it alone
    off = [
        float(np.abs(answer.probabilities - np.array(photo.probabilities)).max())
        for answer, photo in zip(answers, proof.photos, strict=True)
    ]
    photos = [proof.photos[index] for index in np.argsort(off)[::-1]]
    kinds = _suspects(case)
    for suspects in _one_or_two(kinds):
        changed = case
        for suspect in suspects:
            changed = suspect.change(changed)
        if changed != case and _agrees(photos, bind, changed):
            settings = " and ".join(suspect.setting for suspect in suspects)
            return f"With {settings} all agree: put that into the settings."
    if order := _order(proof, answers):
        return f"With the classes in another order all agree: the checkpoint was trained with {order}."
    return (
        f"Neither one setting nor two make them agree (tried: {TRIED}): is this checkpoint of the training "
        "that the proof is of? Run the cell again."
    )


def _one_or_two(kinds: Sequence[Sequence[Suspect]]) -> Iterator[tuple[Suspect, ...]]:
    """Yield every suspect alone, then every two of different kinds."""
    yield from ((suspect,) for suspects in kinds for suspect in suspects)
    for first, second in combinations(kinds, 2):
        yield from ((one, two) for one in first for two in second)


def _suspects(case: Case) -> list[list[Suspect]]:
    """Return the suspects by kind, in the order in which two are changed."""
    other: Exif = "ignore" if case.exif == "turn" else "turn"
    newest = not case.preprocess.newest_pillow
    size = case.preprocess.size or USUAL_SIZE
    return [
        [Suspect(f'exif = "{other}"', lambda case: replace(case, exif=other))],
        [Suspect(setting, _with_steps(steps)) for setting, steps in _pipelines(size)],
        [Suspect(f"image_size = {side}", _with_size((side, side))) for side in OTHER_SIZES],
        [
            Suspect(f"mean = {list(mean)} and std = {list(std)}", _with_statistics(mean, std))
            for mean, std in STATISTICS
        ],
        [Suspect(f'pillow = "{13 if newest else 12}"', _with_pillow(newest))],
    ]


def _pipelines(size: Size) -> Iterator[tuple[str, tuple[Step, ...]]]:
    methods: tuple[ResizeMethod, ...] = ("crop", "squish", "pad")
    for name in PIPELINES:
        for method in methods[:1] if name == "random_resized_crop" else methods:
            setting = f'pipeline = "{name}"'
            if name != "random_resized_crop":
                setting += f' and resize_method = "{method}"'
            yield setting, named_pipeline(name, size, method)
    larger = round(size[0] / 0.875)  # 256 for 224
    text = f"Compose([Resize({larger}), CenterCrop({size[0]}), ToTensor()])"
    yield f'transforms = "{text}"', (TorchvisionResize(larger), CenterCrop((size[0], size[0])))


def _with_steps(steps: tuple[Step, ...]) -> Callable[[Case], Case]:
    return lambda case: replace(case, preprocess=replace(case.preprocess, steps=steps))


def _with_size(size: Size) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        steps = case.preprocess.steps
        if not steps or not isinstance(getattr(steps[-1], "size", None), tuple):
            return case
        resized = (*steps[:-1], replace(steps[-1], size=size))
        return replace(case, preprocess=replace(case.preprocess, steps=resized))

    return change


def _with_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Case], Case]:
    return lambda case: replace(case, preprocess=replace(case.preprocess, mean=mean, std=std))


def _with_pillow(newest: bool) -> Callable[[Case], Case]:
    return lambda case: replace(case, preprocess=replace(case.preprocess, newest_pillow=newest))


def _agrees(photos: Sequence[ProofPhoto], bind: Bind, case: Case) -> bool:
    """Tell whether all photos agree; stop at the first that does not."""
    try:
        prepare, run = bind(case.preprocess)
        return all(agree(photo, *run([prepare(decode(photo.photo, case.exif))])) for photo in photos)
    except Exception:  # a photo cannot be read in this way, or the network does not take this size
        return False


def _order(proof: Proof, answers: Sequence[Output]) -> str:
    """Return the classes in the order in which the answers would agree, if there is one such order."""
    expected = np.array([photo.probabilities for photo in proof.photos], np.float32)
    found = np.stack([answer.probabilities for answer in answers])
    distances = np.abs(found[:, :, None] - expected[:, None, :]).max(axis=0)  # (ours, theirs)
    nearest = distances.argmin(axis=1)
    if len(set(nearest)) < len(nearest) or distances.min(axis=1).max() > TOLERANCE:
        return ""
    return json.dumps([proof.classes[index] for index in nearest], ensure_ascii=False)

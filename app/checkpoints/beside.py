"""Files beside the weights: config.json and preprocessor_config.json, as Hugging Face's libraries write them.

Gives the class names, and the transforms in torchvision's words. Runs nothing; each file has a bound.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from app.checkpoints.labels import Labels, read_labels
from app.errors import CheckpointError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ENDINGS: Final = (".safetensors", ".bin")  # of weights beside which these files stand
MAX_SIZE: Final = 4_000_000  # bytes; the names of 21,841 classes twice take 2 MB
FILTERS: Final = {0: "NEAREST", 2: "BILINEAR", 3: "BICUBIC"}  # torchvision's names of Pillow's numbers
ACTIVATIONS: Final = {"vit": "gelu", "deit": "gelu", "convnext": "gelu", "swin": "gelu", "resnet": "relu"}
WARPED: Final = 384  # pixels from which ConvNextImageProcessor crops nothing (transformers 5.24)


def read_beside(folder: Path) -> dict[str, Any]:
    """Return the settings that the files in a folder decide, by name; empty if there are none.

    Raises CheckpointError where one is damaged, or says what is not reproduced.
    """
    known: dict[str, Any] = {}
    if config := _read(folder / CONFIG):
        known |= _of_config(config)
    if processor := _read(folder / PROCESSOR):
        known["transforms"] = _composed(processor)
    return known


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or not path.stat().st_size:
            return {}
        if path.stat().st_size > MAX_SIZE:
            raise CheckpointError(f"The {path.name} beside the file has over {MAX_SIZE:,} bytes.")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The {path.name} beside the file cannot be read ({type(error).__name__}): copy it again, or "
            "remove it."
        ) from error
    return content if isinstance(content, dict) else {}


# --- config.json -------------------------------------------------------------------------------------------


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a config.json of transformers or of timm."""
    _check_activation(config)
    known: dict[str, Any] = {}
    if labels := _labels(config):
        known["classes"] = labels
    if config.get("problem_type") == "multi_label_classification":
        known["multi_label"] = True
    evaluation = config.get("pretrained_cfg")
    if isinstance(evaluation, dict) and "architecture" in config:
        known["transforms"] = _of_timm(evaluation)
    return known


def _labels(config: Mapping[str, Any]) -> Labels:
    """Return the class names; none where they are those that transformers makes up."""
    names = read_labels(config.get("id2label") or config.get("label2id") or config.get("label_names"))
    return () if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names


def _check_activation(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a network of these names and shapes computes something else."""
    kind = str(config.get("model_type", ""))
    activation = config.get("hidden_act", ACTIVATIONS.get(kind))
    if kind in ACTIVATIONS and activation != ACTIVATIONS[kind]:
        found = f"hidden_act {activation}"
    elif config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
        found = "another place of the strides"
    else:
        return
    raise CheckpointError(
        f"The config.json beside the file says {found}, which is not shipped: run `optimum-cli export onnx "
        "--model FOLDER --task image-classification onnx`, and deploy onnx/model.onnx."
    )


def _of_timm(evaluation: Mapping[str, Any]) -> str:
    """Return the transforms that timm 1.0 makes of a `pretrained_cfg` (`transforms_imagenet_eval`)."""
    try:
        side = int(evaluation["input_size"][1])
        crop = float(evaluation.get("crop_pct") or 0.875)
        resized, method = math.floor(side / crop), str(evaluation["interpolation"]).upper()
        squashed = evaluation.get("crop_mode") == "squash"
        resize = _resize((resized, resized) if squashed else resized, method)
        statistics = (evaluation["mean"], evaluation["std"])
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _unusual(CONFIG, f"a pretrained_cfg of timm without {error}") from error
    if evaluation.get("crop_mode", "center") not in ("center", "squash"):
        raise _unusual(CONFIG, f"crop_mode {evaluation['crop_mode']}")
    return _compose([resize, f"CenterCrop({side})"], statistics)


# --- preprocessor_config.json ------------------------------------------------------------------------------


def _composed(processor: Mapping[str, Any]) -> str:
    """Return what an image processor of transformers does to a photo, as a torchvision `Compose`."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type", ""))
    steps: list[str] = []
    try:
        if processor.get("do_resize", True):
            steps += _resized(processor, kind.startswith("ConvNext"))
        if processor.get("do_center_crop") and processor.get("crop_size"):
            steps.append(f"CenterCrop({_sides(processor['crop_size'])})")
        factor = float(processor.get("rescale_factor", 1 / 255))
    except (TypeError, ValueError, KeyError) as error:
        raise _unusual(PROCESSOR, f"a size that is not understood ({error})") from error
    if not processor.get("do_rescale", True) or abs(factor - 1 / 255) > 1e-6:
        raise _unusual(PROCESSOR, f"rescale_factor {factor}")
    if processor.get("rescale_offset") or processor.get("include_top"):
        raise _unusual(PROCESSOR, "a second normalization")
    if not processor.get("do_normalize", True):
        return _compose(steps, ())
    return _compose(steps, (processor.get("image_mean"), processor.get("image_std")))


def _resized(processor: Mapping[str, Any], is_convnext: bool) -> list[str]:
    """Return the resize: to both sides, to the shorter one, or ConvNeXt's to a share of it and a crop."""
    method = FILTERS[int(processor.get("resample", 3 if is_convnext else 2))]
    size = processor.get("size", 224)
    if not isinstance(size, dict):
        size = {"shortest_edge": size} if is_convnext else {"height": int(size), "width": int(size)}
    if "shortest_edge" not in size:
        return [_resize(_sides(size), method)]
    side = int(size["shortest_edge"])
    if not is_convnext:
        return [_resize(side, method)]
    if side >= WARPED:
        return [_resize((side, side), method)]
    return [_resize(int(side / float(processor.get("crop_pct") or 224 / 256)), method), f"CenterCrop({side})"]


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (int(size), int(size))


# --- both --------------------------------------------------------------------------------------------------


def _resize(size: int | tuple[int, int], method: str) -> str:
    if method not in FILTERS.values():
        raise _unusual("configuration", f"the filter {method[:20]}")
    more = "" if method == "BILINEAR" else f", interpolation=InterpolationMode.{method}"
    return f"Resize({size}{more})"


def _compose(steps: list[str], statistics: tuple[Any, ...]) -> str:
    """Return the text of a `Compose`. Raises CheckpointError for odd statistics."""
    if statistics:
        fits = all(
            isinstance(values, list | tuple)
            and len(values) in (1, 3)
            and all(isinstance(value, float | int) for value in values)
            for values in statistics
        )
        if not fits:
            raise _unusual("configuration", "a mean or std that is not three numbers")
        mean, std = (list(values) for values in statistics)
        return f"Compose([{', '.join([*steps, 'ToTensor()', f'Normalize({mean}, {std})'])}])"
    return f"Compose([{', '.join([*steps, 'ToTensor()'])}])"


def _unusual(name: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"The {name} beside the file has {found}, which is not reproduced. Remove the file, and write "
        "transforms in the settings; compare with a proof."
    )

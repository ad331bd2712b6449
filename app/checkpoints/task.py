"""The task of a network, by the names of its tensors and modules: the error for all but photo classifiers.

Runs before any architecture is looked for, so that a language model is not compared with alexnet.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from app.checkpoints.dialects import OF_TRANSFORMERS, TRANSFORMERS
from app.checkpoints.foreign import ELSEWHERE
from app.errors import CheckpointError, NotAClassifier

Shapes = Mapping[str, tuple[int, ...]]

MAX_SHOWN: Final = 2  # names that a sentence quotes
JOINED: Final = re.compile(r"weight_(orig|mask|g|v|u)$|\.parametrizations\.")
COLOR: Final = (3, 12, 48)  # input channels of a color photo, also after a space-to-depth stem of 2 or 4


class Task(Struct, frozen=True):
    """A task that is not served, and its evidence: patterns of tensor names and of module classes."""

    found: str
    does: str
    tensors: str
    modules: str = r"(?!)"
    advice: str = ELSEWHERE
    unbiased: bool = False  # whether a bias beside the tensor makes it something else


# The more specific task first: CLIP has the embeddings of a language model too.
TASKS: Final = (
    Task(
        "an adapter of LoRA",
        "it changes the weights of another network",
        r"(^|[._])lora_([AB]|up|down)(\.|$)",
        advice="Merge it into that network (merge_and_unload() in peft), and deploy the result",
    ),
    Task(
        "a diffusion model",
        "it draws pictures",
        r"(^|\.)(time_embed|time_mlp|time_embedding|diffusion_model)\.",
        r"^diffusers\.",
    ),
    Task(
        "a model for pictures and texts, such as CLIP",
        "it compares a picture with texts that come with it",
        r"(^|\.)(text_projection|logit_scale)(\.|$)",
    ),
    Task(
        "a model of speech or sound",
        "it takes sound",
        r"(^|\.)(wav2vec2|hubert|whisper|feature_extractor\.conv_layers|masked_spec_embed)(\.|$)",
        r"^(torchaudio|speechbrain|nemo)\.",
    ),
    Task(
        "a text model of fastai",
        "it takes texts",
        r"(^|\.)(rnns\.\d+\.(module\.)?weight_(ih|hh)_l\d|encoder_dp\.emb\.weight)",
        r"^fastai2?\.text\.",
    ),
    Task(
        "a language model",
        "it takes texts",
        r"(^|\.)(word_embeddings?|wte|embed_tokens|token_embedding|tok_embeddings|shared)\.weight$",
        r"^transformers\.models\.(bert|roberta|distilbert|gpt2|t5|electra|albert|xlnet|deberta)",
    ),
    Task(
        "a network with embeddings of words",
        "it takes texts",
        r"(^|\.)(embedding|embeddings|embed|emb|word_emb\w*|token_emb\w*)\.weight$",
        unbiased=True,
    ),
    Task(
        "a recommender (collaborative filtering)",
        "it takes users and items",
        r"(^|\.)([ui]_(weight|bias)\.weight|(user|movie|item|book|product)s?_(factors|emb\w*|bias)(\.weight)?)$",
        r"^fastai2?\.collab\.EmbeddingDotBias",
    ),
    Task(
        "a model of tables",
        "it takes rows of a table",
        r"(^|\.)(embeds\.\d+\.weight|bn_cont\.weight)$",
        r"^fastai2?\.(tabular|collab)\.|^pytorch_tabnet\.",
    ),
    Task(
        "a detector",
        "it draws boxes or key points on a photo",
        r"(^|\.)(rpn|roi_heads?|bbox_head|bbox_embed|bbox_predictor|box_predictor|proposal_generator"
        r"|(classification|regression)_head|box_net|dfl\.conv|anchor_grid|anchors|keypoint_head)(\.|$)",
        r"^torchvision\.models\.detection\.|^ultralytics\..*\.(Detect|Segment|Pose|OBB|\w+Detect\w*)$"
        r"|^models\.(yolo|experimental)\.|^(effdet|mmdet|detectron2)\.",
    ),
    Task(
        "a segmentation network",
        "it gives each pixel a class",
        r"(^|\.)(shuf\.(conv\.)?\w|segmentation_head\.|decode_head\.|aux_classifier\.|classifier\.0\.convs\."
        r"|low_classifier\.|mask_decoder\.|outc\.|double_conv\.)",
        r"^fastai2?\.vision\.models\.unet\.|^torchvision\.models\.segmentation\.|^segmentation_models_pytorch\.",
    ),
    Task(
        "a generative network (a GAN)",
        "it draws pictures",
        r"^(generator|discriminator|critic|net_?[GD]|G|D|gen|disc|synthesis|G_ema|g_ema)(_[ABxy])?\.",
        r"^fastai2?\.vision\.gan\.",
    ),
    Task(
        "an encoder with a decoder (an autoencoder, or a segmentation network)",
        "it answers with a picture",
        r"^((module|model|net)\.)*(decoder|decode|dec)\d*\.",
    ),
    Task(
        "a recurrent network (LSTM or GRU)",
        "it takes sequences, such as texts or measurements",
        r"(^|\.)weight_ih_l\d",
        r"^torch\.nn\.modules\.rnn\.",
    ),
)


def check_task(shapes: Shapes, modules: Iterable[str] = ()) -> None:
    """Raise NotAClassifier where tensors or the classes of modules are not those of a photo classifier."""
    kinds = sorted(set(modules))
    for task in TASKS:
        evidence = [name for name in shapes if re.search(task.tensors, name)]
        if task.unbiased:
            evidence = [name for name in evidence if name.replace("weight", "bias") not in shapes]
        evidence = evidence or [kind for kind in kinds if re.search(task.modules, kind)]
        if evidence:
            raise NotAClassifier(
                f"The file is {task.found}, not a classifier of photos (it has {quoted(evidence)}): "
                f"{task.does}. {task.advice}."
            )
    _check_libraries(shapes, kinds)
    _check_joined(shapes)
    _check_inputs(shapes)


def _check_libraries(shapes: Shapes, kinds: list[str]) -> None:
    """Raise CheckpointError for classifiers of libraries whose networks are not shipped."""
    if any(kind.startswith("ultralytics.") for kind in kinds) or (
        "0.conv.weight" in {name.removeprefix("model.") for name in shapes}
        and any(name.endswith(".linear.weight") for name in shapes)
    ):
        raise CheckpointError(
            "The file is a classifier of ultralytics, whose networks are not shipped: run `yolo export "
            "model=FILE format=onnx`, and deploy the .onnx file."
        )
    if "4.0.conv1.weight" in shapes and all(name[:1].isdecimal() for name in shapes):
        raise CheckpointError(
            f"The file is of fastai 0.7, whose layers stand in one row ({quoted(list(shapes)[-2:])}) and "
            "whose preprocessing is not reproduced: train the network again with fastai 2."
        )


def _check_joined(shapes: Shapes) -> None:
    """Raise CheckpointError for weights that torch computes of several tensors on each call."""
    if parts := [name for name in shapes if JOINED.search(name)]:
        raise CheckpointError(
            f"The file keeps weights in parts that torch joins on each call ({quoted(parts)}), as for "
            "pruning or norms of weights. Join them before you save, with torch.nn.utils.prune.remove, "
            "remove_spectral_norm, or parametrize.remove_parametrizations."
        )


def network_of_transformers(names: list[str]) -> CheckpointError | None:
    """Make the error for a network of Hugging Face's transformers that is not shipped; None for any other."""
    if not any(map(OF_TRANSFORMERS.match, names)):
        return None
    if not any("classifier" in name for name in names):
        return CheckpointError(
            f"The file is a network of {TRANSFORMERS} without a classifier (it has {quoted(names)}), as for "
            "embeddings: deploy the file of the whole classifier."
        )
    return CheckpointError(
        f"The file is a network of {TRANSFORMERS} (it has {quoted(names)}), of a kind or size that is not "
        "shipped: run `optimum-cli export onnx --model FOLDER --task image-classification onnx`, and deploy "
        "onnx/model.onnx."
    )


def _check_inputs(shapes: Shapes) -> None:
    """The same by the kind of the convolutions: a photo has two dimensions and three channels."""
    if shapes and all(len(shape) < 2 for shape in shapes.values()):
        raise NotAClassifier(
            f"The file holds rows of numbers ({_shaped(list(shapes), shapes)}), not the weights of a "
            "network. Deploy the file of learn.save('stage-2')."
        )
    by_dimensions: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        by_dimensions.setdefault(len(shape), []).append(name)
    flat = by_dimensions.get(4, [])
    if not flat and (volumes := by_dimensions.get(5)):
        raise NotAClassifier(
            "The file is a network for videos or volumes, not for photos: it convolves over three dimensions "
            f"({_shaped(volumes, shapes)}). {ELSEWHERE}."
        )
    if not flat and (lines := by_dimensions.get(3)) and not _has_patches(shapes):
        raise NotAClassifier(
            "The file is a network for sequences, such as sound or measurements, not for photos: it "
            f"convolves over one dimension ({_shaped(lines, shapes)}). {ELSEWHERE}."
        )
    if flat and shapes[flat[0]][1] != 1 and not any(shapes[name][1] in COLOR for name in flat):
        raise NotAClassifier(
            "The file is a network for pictures of other channels, not for photos: none of its convolutions "
            f"takes 3 channels, and the first not 1 ({_shaped(flat, shapes)}). {ELSEWHERE}."
        )
    matrices = by_dimensions.get(2, [])
    drawn = [name for name in flat if re.search(r"(^|\.)classifier\.", name) and shapes[name][2] > 1]
    if flat and not matrices and (drawn or [n for n in flat if shapes[n][1] in COLOR] == flat[-1:] != flat):
        raise NotAClassifier(
            "The file is a network that answers with a picture (a generator or a segmentation network), not "
            f"a classifier of photos: it ends with {_shaped(flat[-1:], shapes)}. {ELSEWHERE}."
        )
    if not flat and matrices and not _has_patches(shapes):
        if not any(name.endswith("weight") for name in matrices):
            raise NotAClassifier(
                f"The file holds arrays ({_shaped(matrices, shapes)}), not the weights of a network. Deploy "
                "the file of learn.save('stage-2')."
            )
        raise NotAClassifier(
            "The file is a network without convolutions, which takes rows of numbers, not photos (its "
            f"layers: {_shaped(matrices, shapes)}). {ELSEWHERE}."
        )


def _has_patches(shapes: Shapes) -> bool:
    """Tell whether a network may be a vision transformer, which cuts photos into patches."""
    return any(re.search(r"patch|pos_emb|cls_token|class_token", name) for name in shapes)


def _shaped(names: list[str], shapes: Shapes) -> str:
    return ", ".join(f"{name[:60]} of {shapes[name]}" for name in names[:MAX_SHOWN])


def quoted(names: list[str]) -> str:
    """Quote the first names, shortened, for a sentence."""
    return ", ".join(name[:80] for name in names[:MAX_SHOWN])

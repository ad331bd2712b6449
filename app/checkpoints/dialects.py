"""Networks of other libraries that compute the same as torchvision's or timm's, under other names.

Those are Hugging Face's transformers, EfficientNet-PyTorch, and pretrainedmodels (Cadene's). Translates the
names of their tensors; does not know which of the networks are shipped.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
from msgspec import Struct

from app.types import Array, Arrays

Rules = tuple[tuple[str, str], ...]  # a pattern for the start of a name, and the replacement
Names = dict[str, str]  # the names in a file by the new ones

TRANSFORMERS: Final = "Hugging Face's transformers"
# Names of its other networks.
OF_TRANSFORMERS: Final = re.compile(r"(\w+\.)?(embeddings|embedder|encoder\.(layers?|stages))\.")
DROPPED: Final = "-"  # in place of a replacement, for a tensor that torchvision computes
SUM: Final = re.compile(r"<(\d+)\*(\d+)\+(\d+)>")
PART: Final = re.compile(r"\[(\d)\]")  # of a tensor that is joined of several, along the first axis


class Dialect(Struct, frozen=True):
    """The names of a library: those of which one begins with `marker`, and their translation.

    `family` begins the names of the only architectures that the file can be.
    """

    library: str
    marker: str
    translate: Callable[[Arrays], Names]
    family: str = ""


class Translated(Struct, frozen=True):
    """Arrays under the names of torchvision or timm, and `names` that map those to the names in the file."""

    arrays: dict[str, Array]
    names: Mapping[str, str]
    library: str = ""
    family: str = ""


def translate(arrays: dict[str, Array], names: Mapping[str, str]) -> Translated:
    """Return the arrays of a file under the names of torchvision or timm; `names` are those in the file."""
    dialect = next((each for each in DIALECTS if any(re.match(each.marker, name) for name in arrays)), None)
    if dialect is None:
        return Translated(arrays, names)
    new = dialect.translate(arrays)
    parts: dict[str, list[str]] = {}
    for name in sorted(new, key=lambda name: PART.findall(name)):
        parts.setdefault(PART.sub("", name), []).append(new[name])
    joined = {
        name: arrays[own[0]] if len(own) == 1 else np.concatenate([arrays[each] for each in own])
        for name, own in parts.items()
    }
    own_names = {name: names.get(own[0], own[0]) for name, own in parts.items()}
    return Translated(joined, own_names, dialect.library, dialect.family)


def _by_rules(prefix: str, rules: Rules, arrays: Arrays) -> Names:
    """Return the names by the first rule that fits each, without a prefix that matches `prefix`."""
    new: Names = {}
    for own in arrays:
        name = re.sub(f"^{prefix}", "", own)
        pattern, replacement = next((rule for rule in rules if re.match(rule[0], name)), ("", ""))
        if replacement != DROPPED:
            name = SUM.sub(lambda found: str(int(found[1]) * int(found[2]) + int(found[3])),
                           re.sub(f"^{pattern}", replacement, name))  # fmt: skip
            new[name] = own
    return new


# --- transformers ------------------------------------------------------------------------------------------

# Parts of a block, as version 5 saves them, and as it has them in memory.
ATTENTION: Final[Rules] = (
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.(?:attention\.|self\.)?(?:query|q_proj)\.", "attn.qkv[0]."),
    (r"attention\.(?:attention\.|self\.)?(?:key|k_proj)\.", "attn.qkv[1]."),
    (r"attention\.(?:attention\.|self\.)?(?:value|v_proj)\.", "attn.qkv[2]."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.(?:self|relative_position_bias)\.(?=relative_position_bias_table)", "attn."),
    (r"attention\.(?:self|relative_position_bias)\.relative_position_index", DROPPED),
)
UNIT: Final[Rules] = (
    (r"shortcut\.convolution\.", "downsample.0."),
    (r"shortcut\.normalization\.", "downsample.1."),
    (r"layer\.(\d+)\.convolution\.", r"conv<1*\3+1>."),
    (r"layer\.(\d+)\.normalization\.", r"bn<1*\3+1>."),
)
CONVNEXT_BLOCK: Final[Rules] = (
    (r"layer_scale_parameter", "gamma"),
    (r"dwconv\.", "conv_dw."),
    (r"layernorm\.", "norm."),
    (r"pwconv(\d)\.", r"mlp.fc\3."),
)


def _mlp(first: str, second: str) -> Rules:
    return (
        (r"(?:intermediate\.dense|mlp\.fc1)\.", f"mlp.{first}."),
        (r"(?:output\.dense|mlp\.fc2)\.", f"mlp.{second}."),
    )


def _blocks(own: str, new: str, rules: Rules) -> Rules:
    """Return the rules of the parts of a block as rules of whole names."""
    return tuple((own + part, DROPPED if to == DROPPED else new + to) for part, to in rules)


VIT: Final[Rules] = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    *_blocks(r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1.", ATTENTION + _mlp("fc1", "fc2")),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
RESNET: Final[Rules] = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    *_blocks(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"layer<1*\1+1>.\2.", UNIT),
    (r"classifier\.1\.", "fc."),
)
CONVNEXT: Final[Rules] = (
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    *_blocks(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2.", CONVNEXT_BLOCK),
    (r"layernorm\.", "head.norm."),
    (r"classifier\.", "head.fc."),
)
SWIN: Final[Rules] = (
    (r"embeddings\.patch_embeddings\.projection\.", "features.0.0."),
    (r"embeddings\.norm\.", "features.0.2."),
    (r"encoder\.layers\.(\d+)\.downsample\.", r"features.<2*\1+2>."),
    *_blocks(
        r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.",
        r"features.<2*\1+1>.\2.",
        ATTENTION + _mlp("0", "3"),
    ),
    (r"layernorm\.", "norm."),
    (r"classifier\.", "head."),
)

# --- the others --------------------------------------------------------------------------------------------

EXPANDED: Final = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
PLAIN: Final = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip
OUTSIDE: Final = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"
}  # fmt: skip
VGG: Final[Rules] = (
    (r"_features\.", "features."),
    (r"linear0\.", "classifier.0."),
    (r"linear1\.", "classifier.3."),
    (r"last_linear\.", "classifier.6."),
)
ALEXNET: Final[Rules] = (
    (r"_features\.", "features."),
    (r"linear0\.", "classifier.1."),
    (r"linear1\.", "classifier.4."),
    (r"last_linear\.", "classifier.6."),
)


def _efficientnet(arrays: Arrays) -> Names:
    """Return timm's names of EfficientNet-PyTorch's blocks: a stage ends where their width changes."""
    places: dict[str, str] = {}
    width, stage, inner = 0, -1, 0
    for name, array in arrays.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\._project_conv\.weight", name):
            stage, inner = (stage, inner + 1) if len(array) == width else (stage + 1, 0)
            width = len(array)
            places[found[1]] = f"blocks.{stage}.{inner}"
    new: Names = {}
    for own in arrays:
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", own):
            number, module, tensor = found.groups()
            modules = EXPANDED if f"_blocks.{number}._expand_conv.weight" in arrays else PLAIN
            new[f"{places.get(number, number)}.{modules.get(module, module)}.{tensor}"] = own
        else:
            module, _, tensor = own.partition(".")
            new[f"{OUTSIDE.get(module, module)}.{tensor}"] = own
    return new


DIALECTS: Final = (
    Dialect(
        TRANSFORMERS,
        r"(vit\.|deit\.)?embeddings\.patch_embeddings\.projection\.",
        partial(_by_rules, r"(vit\.|deit\.)", VIT),
    ),
    Dialect(
        TRANSFORMERS, r"(resnet\.)?embedder\.embedder\.convolution\.", partial(_by_rules, r"resnet\.", RESNET)
    ),
    Dialect(
        TRANSFORMERS,
        r"(convnext\.)?encoder\.stages\.0\.layers\.0\.layer_scale_parameter",
        partial(_by_rules, r"convnext\.", CONVNEXT),
    ),
    Dialect(
        TRANSFORMERS,
        r"(swin\.)?encoder\.layers\.0\.blocks\.0\.layernorm_before\.",
        partial(_by_rules, r"swin\.", SWIN),
    ),
    Dialect("EfficientNet-PyTorch", r"_conv_stem\.", _efficientnet, "tf_efficientnet_b"),
    Dialect("pretrainedmodels", r"_features\.(1|2|11)\.", partial(_by_rules, "", VGG)),
    Dialect("pretrainedmodels", r"_features\.", partial(_by_rules, "", ALEXNET)),
)

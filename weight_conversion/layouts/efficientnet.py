"""The names of EfficientNet, B0 to B4, and of EfficientNet-Lite."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from mlic_jax.models.backbones.efficientnet import SIZES, STAGES
from weight_conversion.layouts.rules import (
    POINTWISE,
    Layout,
    Rule,
    conv_bn,
    convolution,
    imagenet_head,
    linear,
    no_head,
)
from weight_conversion.preprocessing import Preprocessing

LITE = tuple(name for name, size in SIZES.items() if size.lite)
LITE_BY_AUTHORS = tuple(name for name in LITE if SIZES[name].by_authors)
BY_AUTHORS = tuple(n for n, size in SIZES.items() if size.by_authors and not size.lite)
IN_PYTORCH = tuple(n for n, size in SIZES.items() if not size.by_authors and not size.lite)

# The other network of the same arrays: of the authors', and trained anew. timm's names are of both.
TWINS = dict(zip(IN_PYTORCH, BY_AUTHORS, strict=True))
TWINS["efficientnet_lite0"] = "timm_efficientnet_lite0"
TWINS |= {second: first for first, second in TWINS.items()}

BICUBIC = Preprocessing(interpolation="bicubic")
LITE_USUAL = Preprocessing(mean=[127 / 255] * 3, std=[128 / 255] * 3, interpolation="bicubic")


class BlockNames(NamedTuple):
    """Of the parts of a block: convolutions and their normalisations, and two layers."""

    expand: tuple[str, str]
    depthwise: tuple[str, str]
    squeeze: tuple[str, str]
    project: tuple[str, str]


def twin_of(layout: Layout, arch: str) -> str | None:
    """Another network that a checkpoint under these names may as well be of."""
    return TWINS.get(arch) if layout.name == "timm" else None


def named_in(source: str, archs: Iterable[str]) -> str | None:
    """The one of `archs` that is named where a checkpoint is, such as `hf:timm/NAME.in1k`.

    Where one name is a part of another, it is the longer.
    """
    words = re.sub(r"[^a-z0-9]+", "_", source.lower())
    return max((arch for arch in archs if arch in words), key=len, default=None)


def _block(theirs: str, ours: str, names: BlockNames) -> list[Rule]:
    rules = []
    for part in ("expand", "depthwise", "project"):
        conv, bn = getattr(names, part)
        if conv:
            rules += conv_bn(f"{theirs}.{conv}", f"{theirs}.{bn}", f"{ours}/{part}")
    for name, layer in zip(names.squeeze, ("reduce", "expand"), strict=True):
        rules += convolution(f"{theirs}.{name}", f"{ours}/squeeze/{layer}", POINTWISE)
    return rules


def _by_stages(
    stages: Iterable[str], first: BlockNames, later: BlockNames, ends: Sequence[tuple[str, str]]
) -> tuple[Rule, ...]:
    """Where the blocks are counted stage by stage.

    Args:
        stages: what the names of the blocks of each begin with.
        first: those of the first stage, whose blocks do not expand.
        ends: the convolution and the normalisation of the stem and of the head.
    """
    rules = [*conv_bn(*ends[0], "stem"), *conv_bn(*ends[1], "head")]
    for number, stage in enumerate(stages, start=1):
        names = first if number == 1 else later
        rules += _block(f"{stage}.{{block}}", f"stage{number}_{{block}}", names)
    return tuple(rules)


def _counted_through(
    blocks: str, names: BlockNames, ends: Sequence[tuple[str, str]]
) -> tuple[Rule, ...]:
    """Where they are counted from the first to the last."""
    rules = _block(f"{blocks}.{{index}}", "stage{stage}_{block}", names)
    return (*conv_bn(*ends[0], "stem"), *rules, *conv_bn(*ends[1], "head"))


def _torchvision() -> tuple[Rule, ...]:
    first = BlockNames(
        expand=("", ""),
        depthwise=("block.0.0", "block.0.1"),
        squeeze=("block.1.fc1", "block.1.fc2"),
        project=("block.2.0", "block.2.1"),
    )
    later = BlockNames(
        expand=("block.0.0", "block.0.1"),
        depthwise=("block.1.0", "block.1.1"),
        squeeze=("block.2.fc1", "block.2.fc2"),
        project=("block.3.0", "block.3.1"),
    )
    stages = [f"features.{k}" for k in range(1, len(STAGES) + 1)]
    ends = (("features.0.0", "features.0.1"), ("features.8.0", "features.8.1"))
    return (*_by_stages(stages, first, later, ends), *linear("classifier.1", "classifier"))


def _timm() -> tuple[Rule, ...]:
    squeeze = ("se.conv_reduce", "se.conv_expand")
    first = BlockNames(("", ""), ("conv_dw", "bn1"), squeeze, ("conv_pw", "bn2"))
    later = BlockNames(("conv_pw", "bn1"), ("conv_dw", "bn2"), squeeze, ("conv_pwl", "bn3"))
    stages = [f"blocks.{k}" for k in range(len(STAGES))]
    ends = (("conv_stem", "bn1"), ("conv_head", "bn2"))
    return (*_by_stages(stages, first, later, ends), *linear("classifier", "classifier"))


def _lukemelas() -> tuple[Rule, ...]:
    names = BlockNames(
        expand=("_expand_conv", "_bn0"),
        depthwise=("_depthwise_conv", "_bn1"),
        squeeze=("_se_reduce", "_se_expand"),
        project=("_project_conv", "_bn2"),
    )
    ends = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
    return (*_counted_through("_blocks", names, ends), *linear("_fc", "classifier"))


def _transformers(prefix: str) -> tuple[Rule, ...]:
    """That of Hugging Face, in a model that calls it `prefix`."""
    names = BlockNames(
        expand=("expansion.expand_conv", "expansion.expand_bn"),
        depthwise=("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        squeeze=("squeeze_excite.reduce", "squeeze_excite.expand"),
        project=("projection.project_conv", "projection.project_bn"),
    )
    stem = (f"{prefix}embeddings.convolution", f"{prefix}embeddings.batchnorm")
    head = (f"{prefix}encoder.top_conv", f"{prefix}encoder.top_bn")
    return _counted_through(f"{prefix}encoder.blocks", names, (stem, head))


def _not_squeezed(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Those that Lite has."""
    return tuple(rule for rule in rules if "/squeeze/" not in rule.target)


def _by_blocks(layout: Layout) -> list[Layout]:
    """One for all networks with as many blocks in every stage."""
    groups: dict[tuple[int, ...], tuple[str, ...]] = {}
    for arch in layout.archs:
        blocks = SIZES[arch].blocks
        groups[blocks] = (*groups.get(blocks, ()), arch)
    return [replace(layout, archs=archs, blocks=blocks) for blocks, archs in groups.items()]


_LUKEMELAS = Layout("lukemelas", BY_AUTHORS, _lukemelas(), imagenet_head, BICUBIC)
_LITE_LUKEMELAS = Layout(
    "lukemelas", LITE_BY_AUTHORS, _not_squeezed(_lukemelas()), imagenet_head, LITE_USUAL
)
_TRANSFORMERS = Layout(  # EfficientNetForImageClassification
    "transformers",
    BY_AUTHORS,
    (*_transformers("efficientnet."), *linear("classifier", "classifier")),
    imagenet_head,
    BICUBIC,
)
_TRANSFORMERS_TRUNK = Layout(  # EfficientNetModel
    "transformers-trunk", BY_AUTHORS, _transformers(""), no_head, BICUBIC
)

LAYOUTS = (
    # Lite comes first: the tables of the others have all of its names.
    Layout("timm", LITE, _not_squeezed(_timm()), imagenet_head, LITE_USUAL),
    *_by_blocks(_LITE_LUKEMELAS),
    Layout("torchvision", IN_PYTORCH, _torchvision(), imagenet_head, BICUBIC),
    # The authors' networks have the same arrays and come last, see `TWINS`.
    Layout("timm", (*IN_PYTORCH, *BY_AUTHORS), _timm(), imagenet_head, BICUBIC),
    # github.com/lukemelas/EfficientNet-PyTorch, and ml-illustrated/EfficientNet-Lite-PyTorch
    *_by_blocks(_LUKEMELAS),
    *_by_blocks(_TRANSFORMERS),
    *_by_blocks(_TRANSFORMERS_TRUNK),
)

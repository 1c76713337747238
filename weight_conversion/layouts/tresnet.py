"""The names of TResNet, its authors' and timm's."""

from mlic_jax.models.backbones.tresnet import SIZES
from weight_conversion.layouts.rules import (
    POINTWISE,
    Layout,
    Rule,
    conv_bn,
    convolution,
    imagenet_head,
    linear,
)
from weight_conversion.preprocessing import Preprocessing

IN_PLACE = tuple(name for name, size in SIZES.items() if size.in_place)
REWRITTEN = tuple(name for name, size in SIZES.items() if not size.in_place)

PIXELS = Preprocessing(mean=[0.0] * 3, std=[1.0] * 3)  # as they are, in [0, 1]


def _layer(name: str, module: str) -> tuple[Rule, ...]:
    """A convolution and its normalisation, in-place activated, which counts no steps."""
    rules = conv_bn(f"{name}.0", f"{name}.1", module)
    return tuple(rule for rule in rules if not rule.target.startswith("unused/"))


def _squeeze(stage: int) -> tuple[Rule, ...]:
    theirs, ours = f"body.layer{stage}.{{block}}.se", f"layer{stage}_{{block}}/squeeze"
    return (
        *convolution(f"{theirs}.fc1", f"{ours}/reduce", POINTWISE),
        *convolution(f"{theirs}.fc2", f"{ours}/expand", POINTWISE),
    )


def _miil(bottlenecks: bool) -> tuple[Rule, ...]:
    """The authors': what a blur follows, in the first block of a stage, is counted once more."""
    rules = [*_layer("body.conv1", "stem"), *linear("head.fc", "classifier")]
    for stage in (1, 2, 3, 4):
        theirs, ours = f"body.layer{stage}", f"layer{stage}"
        strided = 2 if stage > 2 or bottlenecks else 1
        rules += _squeeze(stage)
        rules += _layer(f"{theirs}.{{later}}.conv{{n}}", f"{ours}_{{later}}/conv{{n}}")
        for n in (1, 2, 3):
            blurred = ".0" if stage > 1 and n == strided else ""
            rules += _layer(f"{theirs}.0.conv{n}{blurred}", f"{ours}_0/conv{n}")
        rules += _layer(f"{theirs}.0.downsample.{int(stage > 1)}", f"{ours}_0/downsample")
    return tuple(rules)


def _timm() -> tuple[Rule, ...]:
    rules = [*conv_bn("body.conv1.conv", "body.conv1.bn", "stem"), *linear("head.fc", "classifier")]
    for stage in (1, 2, 3, 4):
        theirs, ours = f"body.layer{stage}.{{block}}", f"layer{stage}_{{block}}"
        rules += _squeeze(stage)
        conv = f"{theirs}.conv{{n}}"
        rules += conv_bn(f"{conv}.conv", f"{conv}.bn", f"{ours}/conv{{n}}")
        shortcut = f"{theirs}.downsample.{int(stage > 1)}"
        rules += conv_bn(f"{shortcut}.conv", f"{shortcut}.bn", f"{ours}/downsample")
    return tuple(rules)


LAYOUTS = (
    *(
        Layout(  # github.com/Alibaba-MIIL: TResNet, ASL, ML_Decoder
            "miil",
            tuple(name for name in IN_PLACE if SIZES[name].bottlenecks == bottlenecks),
            _miil(bottlenecks),
            imagenet_head,
            PIXELS,
        )
        for bottlenecks in (False, True)
    ),
    Layout("timm", REWRITTEN, _timm(), imagenet_head, PIXELS),
)

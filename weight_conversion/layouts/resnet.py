"""The names of ResNets, of ResNet-D and of ResNet-RS."""

from collections.abc import Iterable

from weight_conversion.layouts.rules import (
    POINTWISE,
    Layout,
    Rule,
    conv_bn,
    convolution,
    imagenet_head,
    linear,
)

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RESNETS_D = ("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d")
RESNETS_RS = ("resnetrs50", "resnetrs101")


def resnet(conv: str, bn: str, stages: Iterable[str]) -> tuple[Rule, ...]:
    """A ResNet whose stem is `conv` and `bn`, and whose four stages have these names."""
    return (*conv_bn(conv, bn, "stem"), *_blocks(stages, ("0", "1")))


def _blocks(stages: Iterable[str], shortcuts: tuple[str, str]) -> list[Rule]:
    """Those of the stages of these names; `shortcuts` are the two parts of one."""
    rules: list[Rule] = []
    for number, stage in enumerate(stages, start=1):
        ours = f"layer{number}_{{block}}"
        rules += conv_bn(
            f"{stage}.{{block}}.conv{{n}}", f"{stage}.{{block}}.bn{{n}}", f"{ours}/conv{{n}}"
        )
        conv, bn = (f"{stage}.{{block}}.downsample.{part}" for part in shortcuts)
        rules += conv_bn(conv, bn, f"{ours}/downsample")
    return rules


def _variant() -> tuple[Rule, ...]:
    """ResNet-D and ResNet-RS, of which the latter alone has the last of the stem and `se`."""
    rules = [
        *conv_bn("conv1.0", "conv1.1", "stem/conv1"),
        *conv_bn("conv1.3", "conv1.4", "stem/conv2"),
        *conv_bn("conv1.6", "bn1", "stem/conv3"),
        *conv_bn("maxpool.0", "maxpool.1", "stem/conv4"),
        *_blocks([f"layer{k}" for k in (1, 2, 3, 4)], ("1", "2")),  # 0 averages
        *linear("fc", "classifier"),
    ]
    for stage in (1, 2, 3, 4):
        theirs, ours = f"layer{stage}.{{block}}.se", f"layer{stage}_{{block}}/squeeze"
        rules += convolution(f"{theirs}.fc1", f"{ours}/reduce", POINTWISE)
        rules += convolution(f"{theirs}.fc2", f"{ours}/expand", POINTWISE)
    return tuple(rules)


LAYOUTS = (
    Layout(
        "torchvision",
        RESNETS,
        (
            *resnet("conv1", "bn1", [f"layer{k}" for k in (1, 2, 3, 4)]),
            *linear("fc", "classifier"),
        ),
        imagenet_head,
    ),
    Layout("timm", (*RESNETS_D, *RESNETS_RS), _variant(), imagenet_head),
)

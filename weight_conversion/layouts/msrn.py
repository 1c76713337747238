"""The names of the released checkpoints of MSRN, which call every trunk resnet_101."""

from weight_conversion.layouts.resnet import RESNETS, resnet
from weight_conversion.layouts.rules import (
    IMAGENET_CLASSES,
    POINTWISE,
    Layout,
    Leaves,
    Rule,
    Sizes,
    linear,
    unused,
)

MSRN_WORDS = 300  # the length of a word vector
MSRN_BLOCK = 1536  # features of a class or group: 512 of each of three branches


def _graph_attention(name: str, module: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{name}.W", f"params/{module}/kernel"),
        Rule(f"{name}.a", f"params/{module}/attention"),
    )


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


LAYOUTS = (
    Layout(
        "msrn",
        RESNETS,
        (
            *resnet(
                "resnet_101.conv1",
                "resnet_101.bn1",
                [f"resnet_101.layer{k}" for k in (1, 2, 3, 4)],
            ),
            *linear("resnet_101.conv_buffer1", "branch2", POINTWISE),
            *linear("resnet_101.conv_buffer2", "branch3", POINTWISE),
            *linear("ProjectM.0", "project2", POINTWISE),
            *linear("ProjectM.1", "project3", POINTWISE),
            *linear("ProjectM.2", "project4", POINTWISE),
            *linear("fc_label", "label_linear"),
            *_graph_attention("label_embed.layers.0", "label_attention0"),
            *_graph_attention("label_embed.layers.1", "label_attention1"),
            *_graph_attention("group_embed.layers.0.embed", "group_attention"),
            *_graph_attention("group_embed.layers.0.assign_mat", "group_assignment"),
            *linear("fc1", "fc1"),
            *linear("fc2", "fc2"),
            unused("resnet_101.conv_buffer0.{kind}"),
            unused("resnet_101.fc.{kind}"),
            unused("W"),
            unused("B"),
        ),
        _msrn_head,
    ),
)

"""Which tensor of a PyTorch checkpoint fills which leaf of our trees: one table a naming layout.

A checkpoint fits an architecture when every one of its names is that of a leaf and every leaf of
the architecture is filled once, with the right shape. Only names and shapes are needed to tell.
"""

from weight_conversion.layouts import (
    convnext,
    efficientnet,
    mcar,
    mobilenet_v2,
    msrn,
    resnet,
    swin,
    tresnet,
    vit,
)
from weight_conversion.layouts.rules import Layout

LAYOUTS: tuple[Layout, ...] = (
    *resnet.LAYOUTS,
    *mobilenet_v2.LAYOUTS,
    *efficientnet.LAYOUTS,
    *tresnet.LAYOUTS,
    *convnext.LAYOUTS,
    *swin.LAYOUTS,
    *vit.LAYOUTS,
    *mcar.LAYOUTS,
    *msrn.LAYOUTS,
)
# The names that the modules of `torch_reference` have.
REFERENCE_LAYOUTS = {
    **dict.fromkeys((*resnet.RESNETS, *mobilenet_v2.MOBILENET), "torchvision"),
    **dict.fromkeys((*resnet.RESNETS_D, *resnet.RESNETS_RS), "timm"),
    **dict.fromkeys(efficientnet.SIZES, "timm"),
    **dict.fromkeys(tresnet.IN_PLACE, "miil"),
    **dict.fromkeys(tresnet.REWRITTEN, "timm"),
    **dict.fromkeys((*convnext.CONVNEXT, *convnext.CONVNEXT_V2), "timm"),
    **dict.fromkeys((*swin.SWIN, *swin.SWIN_V2), "timm"),
    **dict.fromkeys((name for name in vit.SIZES if name not in vit.DINOV3S), "timm"),
}
TWINS = swin.TWINS
ARCHS = tuple(dict.fromkeys(arch for layout in LAYOUTS for arch in layout.archs))

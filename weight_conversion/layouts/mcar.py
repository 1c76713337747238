"""The names of the released checkpoints of MCAR (TIP 2021)."""

from weight_conversion.layouts.mobilenet_v2 import MOBILENET, flat_mobilenet
from weight_conversion.layouts.resnet import RESNETS, resnet
from weight_conversion.layouts.rules import POINTWISE, Layout, Leaves, Sizes, linear


def _mcar_head(sizes: Sizes) -> Leaves:
    kernel = (sizes.channels[-1], sizes.classes)
    return Leaves({"params/convclass/kernel": kernel, "params/convclass/bias": kernel[1:]})


LAYOUTS = (
    Layout(
        "mcar",
        RESNETS,
        (
            *resnet("features.0", "features.1", [f"features.{k}" for k in (4, 5, 6, 7)]),
            *linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
    Layout(
        "mcar",
        MOBILENET,
        (
            *flat_mobilenet("features.0", "features.1"),
            *linear("convclass", "convclass", POINTWISE),
        ),
        _mcar_head,
    ),
)

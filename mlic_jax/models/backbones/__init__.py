"""Backbones: images to feature maps.

A backbone is a Linen module that takes images `[B, H, W, 3]`, whether it trains and which rows are
real, and gives the maps of its stages `[B, h, w, F]`, the deepest last, at the stride that
`names.stride_of` tells. It may have variables in `batch_stats` or none. `stage_of` tells how deep
in it a module is, by its name: 0 the stem, and on; what leads to a stage, or normalises it at its
end, belongs to it. What holds of some alone is told by an attribute: `layer`, which makes its
batch-normalised convolutions; `drop_path`, a rate of stochastic depth; `fit`, which brings given
parameters to the shapes of fresh ones where those go by the size of images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn

from mlic_jax.models.backbones import (
    convnext,
    efficientnet,
    mobilenet_v2,
    resnet,
    swin,
    tresnet,
    vit,
)
from mlic_jax.models.layers import ConvBatchNorm


@dataclass(frozen=True)
class Settings:
    """What of `config.model` backbones are made with; see `create_backbone`."""

    width: float
    dtype: Any
    bn_groups: int
    remat: str
    drop_path: float

    @property
    def layer(self) -> Callable[..., nn.Module]:
        """A convolution with its batch normalisation."""
        return partial(ConvBatchNorm, dtype=self.dtype, bn_groups=self.bn_groups)


def _resnet(depth: int, settings: Settings, variant: str = "") -> nn.Module:
    return resnet.ResNet(
        depth, settings.width, settings.layer, settings.remat, variant, settings.dtype
    )


def _mobilenet_v2(settings: Settings) -> nn.Module:
    return mobilenet_v2.MobileNetV2(settings.width, settings.layer, settings.remat)


def _convnext(name: str, settings: Settings) -> nn.Module:
    return convnext.ConvNeXt(
        convnext.SIZES[name], settings.width, settings.dtype, settings.remat, settings.drop_path
    )


def _efficientnet(name: str, settings: Settings) -> nn.Module:
    return efficientnet.EfficientNet(
        efficientnet.SIZES[name],
        settings.width,
        settings.layer,
        settings.dtype,
        settings.remat,
        settings.drop_path,
    )


def _tresnet(name: str, settings: Settings) -> nn.Module:
    return tresnet.TResNet(
        tresnet.SIZES[name], settings.width, settings.layer, settings.dtype, settings.remat
    )


def _swin(name: str, settings: Settings) -> nn.Module:
    return swin.Swin(
        swin.SIZES[name], settings.width, settings.dtype, settings.remat, settings.drop_path
    )


def _vit(name: str, settings: Settings) -> nn.Module:
    return vit.ViT(
        vit.SIZES[name], settings.width, settings.dtype, settings.remat, settings.drop_path
    )


# By `names.BACKBONES`.
CREATORS: dict[str, Callable[[Settings], nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, depth) for depth in resnet.DEPTHS},
    **{f"resnet{depth}d": partial(_resnet, depth, variant="d") for depth in resnet.D_DEPTHS},
    **{f"resnetrs{depth}": partial(_resnet, depth, variant="rs") for depth in resnet.RS_DEPTHS},
    "mobilenet_v2": _mobilenet_v2,
    **{name: partial(_efficientnet, name) for name in efficientnet.SIZES},
    **{name: partial(_tresnet, name) for name in tresnet.SIZES},
    **{name: partial(_convnext, name) for name in convnext.SIZES},
    **{name: partial(_swin, name) for name in swin.SIZES},
    **{name: partial(_vit, name) for name in vit.SIZES},
}

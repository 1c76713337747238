"""Backbones: images to feature maps.

A backbone is a Linen module that takes images `[B, H, W, 3]`, whether it trains and which rows are
real, and gives the maps of its stages `[B, h, w, F]`, the deepest last, at a stride of 32. It may
have variables in `batch_stats` or none. What holds of some alone is told by an attribute: `layer`,
which makes its batch-normalised convolutions; `drop_path`, a rate of stochastic depth.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn

from mlic_jax.models.backbones import convnext, mobilenet_v2, resnet
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


def _resnet(depth: int, settings: Settings) -> nn.Module:
    return resnet.ResNet(depth, settings.width, settings.layer, settings.remat)


def _mobilenet_v2(settings: Settings) -> nn.Module:
    return mobilenet_v2.MobileNetV2(settings.width, settings.layer, settings.remat)


def _convnext(name: str, settings: Settings) -> nn.Module:
    return convnext.ConvNeXt(
        convnext.SIZES[name], settings.width, settings.dtype, settings.remat, settings.drop_path
    )


# By `names.BACKBONES`.
CREATORS: dict[str, Callable[[Settings], nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, depth) for depth in resnet.DEPTHS},
    "mobilenet_v2": _mobilenet_v2,
    **{name: partial(_convnext, name) for name in convnext.SIZES},
}

# The last block of each of MobileNetV2's groups; they are counted from 1.
_LAST_BLOCKS = tuple(itertools.accumulate(count for _, _, count, _ in mobilenet_v2.GROUPS))


def stage_of(module: str) -> int:
    """How deep in its backbone a module is, by its name: 0 the stem, and on by stages.

    Of ResNet and ConvNeXt 1 to 4, of MobileNetV2 1 to 7, the lines of `GROUPS`, and 8 the last
    convolution. What leads to a stage, or normalises it at its end, belongs to it.
    """
    if module == "stem":
        return 0
    if module == "head":
        return len(mobilenet_v2.GROUPS) + 1
    if module == "norm":
        return 4
    if found := re.fullmatch(r"(?:layer|stage|downsample)(\d)(?:_\d+)?", module):
        return int(found[1])
    block = int(module.removeprefix("block"))
    return 1 + next(group for group, last in enumerate(_LAST_BLOCKS) if block <= last)

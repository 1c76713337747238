"""MobileNetV2 (Sandler et al. 2018), its last 1x1 convolution included."""

import itertools
from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from mlic_jax.models.arrays import RowMask, StageMaps
from mlic_jax.models.layers import ConvBatchNorm, run_in_order

# (expansion, channels, blocks, stride of the first) of every group of blocks: table 2 of the paper.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
HEAD_CHANNELS = 1280

# The last block of each group; they are counted from 1.
_LAST_BLOCKS = tuple(itertools.accumulate(count for _, _, count, _ in GROUPS))


def scaled(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, never more than a tenth below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection, beside a shortcut where shapes allow."""

    features: int
    stride: int
    expansion: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B -(-H//{self.stride}) -(-W//{self.stride}) G"]:
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = self.layer(hidden, activation=nn.relu6, name="expand")(y, train, mask)
        depthwise = self.layer(
            hidden, 3, self.stride, depthwise=True, activation=nn.relu6, name="depthwise"
        )
        y = depthwise(y, train, mask)
        y = self.layer(self.features, name="project")(y, train, mask)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier.

    Attributes:
        width: multiplies every channel count but the head's, which only grows; 1 is the published
            network.
        layer: makes a convolution with its batch normalisation, as `ConvBatchNorm` does.
        remat: one of `names.REMATS`; a stage is a line of `GROUPS`.
    """

    width: float = 1.0
    layer: Callable[..., nn.Module] = ConvBatchNorm
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> StageMaps:
        """Maps images to the last maps at strides 2, 4, 8, 16 and 32.

        Args:
            mask: padding moves no batch statistics, see `ConvBatchNorm`.
        """
        stem = self.layer(scaled(32 * self.width), 3, 2, activation=nn.relu6, name="stem")
        x = stem(x, train, mask)
        stages, index = [], 1
        for expansion, channels, count, first_stride in GROUPS:
            if first_stride == 2:
                stages.append(x)
            chain = [
                partial(
                    InvertedResidual,
                    features=scaled(channels * self.width),
                    stride=first_stride if block == 0 else 1,
                    expansion=expansion,
                    layer=self.layer,
                    name=f"block{index + block}",
                )
                for block in range(count)
            ]
            x, index = run_in_order(self, chain, self.remat, x, train, mask), index + count
        head = scaled(HEAD_CHANNELS * max(1.0, self.width))
        x = self.layer(head, activation=nn.relu6, name="head")(x, train, mask)
        return (*stages, x)

    @staticmethod
    def stage_of(module: str) -> int:
        """1 to 7, the lines of `GROUPS`; 0 the stem, and 8 the last convolution."""
        if module in ("stem", "head"):
            return 0 if module == "stem" else len(GROUPS) + 1
        block = int(module.removeprefix("block"))
        return 1 + next(group for group, last in enumerate(_LAST_BLOCKS) if block <= last)

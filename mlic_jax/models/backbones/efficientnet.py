"""EfficientNet B0 to B4 (Tan and Le 2019, arXiv 1905.11946) and EfficientNet-Lite 0 to 4.

The last 1x1 convolution included. The authors' networks pad as TensorFlow does and normalise with
an epsilon of 1e-3: all of Lite, and `tf_efficientnet_b*` as timm calls them. Those that were
trained anew in PyTorch, torchvision's among them, pad on all sides alike and have its usual
normalisation: `efficientnet_b*` and `timm_efficientnet_lite0`. Both kinds have the same arrays.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlic_jax.models.arrays import RowMask, StageMaps
from mlic_jax.models.backbones.mobilenet_v2 import HEAD_CHANNELS, scaled
from mlic_jax.models.layers import ConvBatchNorm, SqueezeExcite, drop_path, run_in_order

STEM_CHANNELS = 32
# (expansion, size of the depthwise kernel, channels, blocks, stride of the first) of every stage of
# B0: table 1 of the paper.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
# Of the authors' networks; see `ConvBatchNorm`.
AUTHORS = {"same": True, "epsilon": 1e-3, "momentum": 0.01}


class Size(NamedTuple):
    """By how much a published network is wider and deeper than B0.

    Lite has ReLU6 in the place of SiLU and no squeeze-and-excitation, and does not scale its stem,
    its head, and the number of blocks of the first and of the last stage.
    """

    width: float
    depth: float
    lite: bool = False
    by_authors: bool = True

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of every stage."""
        counts = [count for _, _, _, count, _ in STAGES]
        fixed = (0, len(STAGES) - 1) if self.lite else ()
        return tuple(
            count if stage in fixed else math.ceil(count * self.depth)
            for stage, count in enumerate(counts)
        )


_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
SIZES = {
    **{f"efficientnet_lite{k}": Size(*scale, lite=True) for k, scale in enumerate(_SCALES)},
    "timm_efficientnet_lite0": Size(*_SCALES[0], lite=True, by_authors=False),
    **{f"efficientnet_b{k}": Size(*scale, by_authors=False) for k, scale in enumerate(_SCALES)},
    **{f"tf_efficientnet_b{k}": Size(*scale) for k, scale in enumerate(_SCALES)},
}


class MBConv(nn.Module):
    """1x1 expansion, depthwise, squeeze-and-excitation, linear 1x1, beside a shortcut if it fits.

    Attributes:
        squeeze: whether there is squeeze-and-excitation, down to a quarter of the block's inputs.
        drop_rate: of stochastic depth, see `drop_path`.
    """

    features: int
    size: int
    stride: int
    expansion: int
    squeeze: bool
    layer: Callable[..., nn.Module]
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B -(-H//{self.stride}) -(-W//{self.stride}) G"]:
        inputs, activation = x.shape[-1], nn.silu if self.squeeze else nn.relu6
        hidden = inputs * self.expansion
        layer = partial(self.layer, activation=activation)
        y = x
        if self.expansion != 1:
            y = layer(hidden, name="expand")(y, train, mask)
        depthwise = layer(hidden, self.size, self.stride, depthwise=True, name="depthwise")
        y = depthwise(y, train, mask)
        if self.squeeze:
            y = SqueezeExcite(max(1, inputs // 4), activation, self.dtype, name="squeeze")(y)
        y = self.layer(self.features, name="project")(y, train, mask)
        if self.stride != 1 or inputs != self.features:
            return y
        return x + drop_path(self, y, self.drop_rate)


class EfficientNet(nn.Module):
    """EfficientNet without its classifier.

    Attributes:
        size: one of `SIZES`, or another such.
        width: multiplies every channel count but the head's, which only grows; 1 is the published
            network.
        layer: makes a convolution with its batch normalisation, as `ConvBatchNorm` does.
        dtype: of the squeeze-and-excitation, that of `layer`.
        remat: one of `names.REMATS`; a stage is a line of `STAGES`.
        drop_path: the rate of stochastic depth of the last block; those before have less, in
            equal steps from 0.
    """

    size: Size
    width: float = 1.0
    layer: Callable[..., nn.Module] = ConvBatchNorm
    dtype: Any = jnp.float32
    remat: str = "none"
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> StageMaps:
        """Maps images to the last maps at strides 4, 8, 16 and 32.

        Args:
            mask: padding moves no batch statistics, see `ConvBatchNorm`. Given a key `dropout`,
                blocks are dropped.
        """
        ends = 1.0 if self.size.lite else self.size.width
        activation = nn.relu6 if self.size.lite else nn.silu
        layer = partial(self.layer, **AUTHORS) if self.size.by_authors else self.layer
        rates = iter(np.linspace(0, self.drop_path, sum(self.size.blocks)).tolist())
        stem = scaled(STEM_CHANNELS * ends * self.width)
        x = layer(stem, 3, 2, activation=activation, name="stem")(x, train, mask)
        maps = []
        for stage, (expansion, size, channels, _, first_stride) in enumerate(STAGES, start=1):
            if first_stride == 2 and stage > 2:
                maps.append(x)
            chain = [
                partial(
                    MBConv,
                    features=scaled(channels * self.size.width * self.width),
                    size=size,
                    stride=first_stride if block == 0 else 1,
                    expansion=expansion,
                    squeeze=not self.size.lite,
                    layer=layer,
                    drop_rate=next(rates),
                    dtype=self.dtype,
                    name=f"stage{stage}_{block}",
                )
                for block in range(self.size.blocks[stage - 1])
            ]
            x = run_in_order(self, chain, self.remat, x, train, mask)
        head = scaled(HEAD_CHANNELS * ends * max(1.0, self.width))
        x = layer(head, activation=activation, name="head")(x, train, mask)
        return (*maps, x)

    @staticmethod
    def stage_of(module: str) -> int:
        """1 to 7, the lines of `STAGES`; 0 the stem, and 8 the last convolution."""
        named = {"stem": 0, "head": len(STAGES) + 1}
        return named[module] if module in named else int(module.removeprefix("stage")[0])

"""TResNet (Ridnik et al. 2021, arXiv 2003.13630), on which multi-label papers are measured.

A ResNet whose stem takes blocks of 4x4 pixels, whose strides are blurs, with squeeze-and-excitation
and leaky ReLUs. The published weights are of in-place activated batch normalisation, whose scales
count by their magnitude; timm has them rewritten for the usual one: `timm_tresnet_*`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlic_jax.models.arrays import RowMask, StageMaps
from mlic_jax.models.backbones.resnet import ResNet
from mlic_jax.models.layers import ConvBatchNorm, SqueezeExcite, run_in_order
from mlic_jax.models.ops.pooling import average_pool, blur_pool

PATCH = 4  # pixels of a side
LEAST_SQUEEZED = 64  # features between the layers of squeeze-and-excitation


class Size(NamedTuple):
    """Of a published network: the blocks of every stage, and the channels by those of M.

    The last two stages are of bottlenecks; the first two are where `bottlenecks` says so.
    """

    blocks: tuple[int, ...]
    width: float = 1.0
    bottlenecks: bool = False
    in_place: bool = True


_PUBLISHED = {
    "tresnet_m": Size((3, 4, 11, 3)),
    "tresnet_l": Size((4, 5, 18, 3), 1.2),
    "tresnet_v2_l": Size((3, 4, 23, 3), bottlenecks=True),
}
SIZES = _PUBLISHED | {f"timm_{n}": size._replace(in_place=False) for n, size in _PUBLISHED.items()}


def leaky(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """The leaky ReLU inside the blocks, whose slope below 0 is slight."""
    return nn.leaky_relu(x, 1e-3)


def space_to_depth(x: Float[Array, "B H W F"]) -> Float[Array, "B H//4 W//4 16*F"]:
    """The pixels of every 4x4 block as features, row by row; what is left over is not seen."""
    batch, height, width, features = x.shape
    height, width = height // PATCH, width // PATCH
    x = x[:, : height * PATCH, : width * PATCH]
    x = x.reshape(batch, height, PATCH, width, PATCH, features).swapaxes(2, 3)
    return x.reshape(batch, height, width, PATCH * PATCH * features)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 in a bottleneck, beside a shortcut.

    Attributes:
        squeeze: whether there is squeeze-and-excitation, after the last 3x3 convolution.
    """

    features: int
    stride: int
    bottleneck: bool
    squeeze: bool
    layer: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B -(-H//{self.stride}) -(-W//{self.stride}) G"]:
        outputs = 4 * self.features if self.bottleneck else self.features
        shortcut = x
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = average_pool(x) if self.stride == 2 else x
            shortcut = self.layer(outputs, name="downsample")(shortcut, train, mask)
        layer = partial(self.layer, self.features, activation=leaky)
        if self.bottleneck:
            x = layer(name="conv1")(x, train, mask)
            x = self._at_stride(layer(3, name="conv2")(x, train, mask))
            x = self._squeezed(x, outputs // 8)
            x = self.layer(outputs, name="conv3")(x, train, mask)
        else:
            x = self._at_stride(layer(3, name="conv1")(x, train, mask))
            x = self.layer(outputs, 3, name="conv2")(x, train, mask)
            x = self._squeezed(x, outputs // 4)
        total = x + shortcut
        return jnp.where(total <= 0, 0, total)  # see `resnet.ResidualBlock`

    def _at_stride(self, x: Array) -> Array:
        return blur_pool(x) if self.stride == 2 else x

    def _squeezed(self, x: Array, features: int) -> Array:
        if not self.squeeze:
            return x
        squeezed = max(features, LEAST_SQUEEZED)
        return SqueezeExcite(squeezed, dtype=self.dtype, name="squeeze")(x)


class TResNet(nn.Module):
    """TResNet without its classifier.

    Attributes:
        size: one of `SIZES`, or another such.
        width: multiplies every channel count; 1 is the published network.
        layer: makes a convolution with its batch normalisation, as `ConvBatchNorm` does.
        dtype: of squeeze-and-excitation, that of `layer`.
        remat: one of `names.REMATS`.
    """

    size: Size
    width: float = 1.0
    layer: Callable[..., nn.Module] = ConvBatchNorm
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> StageMaps:
        """Maps images to the maps after each stage, at strides 4, 8, 16 and 32.

        Args:
            mask: padding moves no batch statistics, see `ConvBatchNorm`.
        """
        channels = int(64 * self.size.width * self.width)
        layer = partial(self.layer, positive=self.size.in_place)
        stem = layer(channels, 3, activation=nn.leaky_relu, name="stem")
        x = stem(space_to_depth(x), train, mask)
        stages = []
        for stage, count in enumerate(self.size.blocks, start=1):
            chain = [
                partial(
                    Block,
                    features=channels * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=stage > 2 or self.size.bottlenecks,
                    squeeze=stage < 4,
                    layer=layer,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )
                for block in range(count)
            ]
            x = run_in_order(self, chain, self.remat, x, train, mask)
            stages.append(x)
        return tuple(stages)

    stage_of = staticmethod(ResNet.stage_of)  # by the same names

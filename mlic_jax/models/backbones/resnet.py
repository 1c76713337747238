"""ResNet (He et al. 2016) in the v1.5 form: a bottleneck's stride sits on its 3x3 convolution.

And its variants ResNet-D (He et al. 2019, arXiv 1812.01187) and ResNet-RS (Bello et al. 2021, arXiv
2103.07579).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlic_jax.models.arrays import RowMask, StageMaps
from mlic_jax.models.layers import ConvBatchNorm, SqueezeExcite, run_in_order
from mlic_jax.models.ops.pooling import average_pool, max_pool

# Depth -> (blocks of every stage, whether they are bottlenecks).
DEPTHS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
# D has three 3x3 convolutions for the 7x7 one of the stem, and its shortcuts take means where the
# others leave positions out. RS has that, squeeze-and-excitation at the end of every block, and a
# convolution in the place of the pooling.
VARIANTS = ("", "d", "rs")
D_DEPTHS = (18, 34, 50, 101, 152)
RS_DEPTHS = (50, 101)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 in a bottleneck, beside a shortcut.

    Attributes:
        variant: one of `VARIANTS`.
        dtype: of squeeze-and-excitation, that of `layer`.
    """

    features: int
    stride: int
    bottleneck: bool
    layer: Callable[..., nn.Module]
    variant: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B -(-H//{self.stride}) -(-W//{self.stride}) G"]:
        outputs = self.features * 4 if self.bottleneck else self.features
        shortcut = x
        if self.stride != 1 or x.shape[-1] != outputs:
            stride = self.stride
            if self.variant and stride == 2:
                shortcut, stride = average_pool(x), 1
            project = self.layer(outputs, 1, stride, name="downsample")
            shortcut = project(shortcut, train, mask)
        shapes: tuple[tuple[int, int, int], ...]  # features, size and stride
        if self.bottleneck:
            shapes = ((self.features, 1, 1), (self.features, 3, self.stride), (outputs, 1, 1))
        else:
            shapes = ((self.features, 3, self.stride), (outputs, 3, 1))
        for i, (features, size, stride) in enumerate(shapes, start=1):
            activation = nn.relu if i < len(shapes) else None
            layer = self.layer(features, size, stride, activation=activation, name=f"conv{i}")
            x = layer(x, train, mask)
        if self.variant == "rs":
            x = SqueezeExcite(outputs // 4, dtype=self.dtype, name="squeeze")(x)
        total = x + shortcut
        # A ReLU. Of `nn.relu` XLA's CPU backend would compute every sum anew inside those of all
        # blocks that follow in the stage, at a cost that grows with the square of their number.
        return jnp.where(total <= 0, 0, total)


class Stem(nn.Module):
    """What comes before the stages of a variant, down to a quarter of the image."""

    features: int
    variant: str
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B h w {self.features}"]:
        layer = partial(self.layer, size=3, activation=nn.relu)
        x = layer(self.features // 2, stride=2, name="conv1")(x, train, mask)
        x = layer(self.features // 2, name="conv2")(x, train, mask)
        x = layer(self.features, name="conv3")(x, train, mask)
        if self.variant == "rs":
            return layer(self.features, stride=2, name="conv4")(x, train, mask)
        return max_pool(x)


class ResNet(nn.Module):
    """ResNet-18/34/50/101/152, or a variant, without its classifier.

    Attributes:
        depth: one of `DEPTHS`.
        width: multiplies every channel count; 1 is the published network.
        layer: makes a convolution with its batch normalisation, as `ConvBatchNorm` does.
        remat: one of `names.REMATS`.
        variant: one of `VARIANTS`.
        dtype: of squeeze-and-excitation, that of `layer`.
    """

    depth: int
    width: float = 1.0
    layer: Callable[..., nn.Module] = ConvBatchNorm
    remat: str = "none"
    variant: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> StageMaps:
        """Maps images to the maps after each stage, at strides 4, 8, 16 and 32.

        Args:
            mask: padding moves no batch statistics, see `ConvBatchNorm`.
        """
        blocks, bottleneck = DEPTHS[self.depth]
        channels = round(64 * self.width)
        if self.variant:
            x = Stem(channels, self.variant, self.layer, name="stem")(x, train, mask)
        else:
            x = self.layer(channels, 7, 2, activation=nn.relu, name="stem")(x, train, mask)
            x = max_pool(x)
        stages = []
        for stage, count in enumerate(blocks, start=1):
            chain = [
                partial(
                    ResidualBlock,
                    features=channels * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=bottleneck,
                    layer=self.layer,
                    variant=self.variant,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )
                for block in range(count)
            ]
            x = run_in_order(self, chain, self.remat, x, train, mask)
            stages.append(x)
        return tuple(stages)

    @staticmethod
    def stage_of(module: str) -> int:
        """1 to 4; 0 the stem."""
        return 0 if module == "stem" else int(module.removeprefix("layer").partition("_")[0])

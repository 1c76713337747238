"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) and V2 (Woo et al. 2023, arXiv 2301.00808).

Their normalisations are of a position by itself, so they have no batch statistics.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlic_jax.models.arrays import RowMask, StageMaps
from mlic_jax.models.layers import LayerNorm, drop_path, run_in_order
from mlic_jax.models.ops.convolution import convolve
from mlic_jax.models.precision import at_least_float32

LAYER_SCALE = 1e-6  # what the branches of version 1 start at
GRN_EPSILON = 1e-6

# Normal, of a standard deviation of 0.02, cut off at two of them.
kernel_initializer = nn.initializers.truncated_normal(0.02)


class Size(NamedTuple):
    """Of a published network, the blocks and the channels of every stage."""

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    version: int


def _size(third: int, first: int, version: int, others: tuple[int, int, int] = (3, 3, 3)) -> Size:
    """Of so many blocks in the third stage and so many channels in the first, doubled by each."""
    channels = (first, 2 * first, 4 * first, 8 * first)
    return Size((*others[:2], third, others[2]), channels, version)


SIZES = {
    "convnext_tiny": _size(9, 96, 1),
    "convnext_small": _size(27, 96, 1),
    "convnext_base": _size(27, 128, 1),
    "convnext_large": _size(27, 192, 1),
    "convnext_xlarge": _size(27, 256, 1),
    "convnextv2_atto": _size(6, 40, 2, (2, 2, 2)),
    "convnextv2_femto": _size(6, 48, 2, (2, 2, 2)),
    "convnextv2_pico": _size(6, 64, 2, (2, 2, 2)),
    "convnextv2_nano": _size(8, 80, 2, (2, 2, 2)),
    "convnextv2_tiny": _size(9, 96, 2),
    "convnextv2_base": _size(27, 128, 2),
    "convnextv2_large": _size(27, 192, 2),
    "convnextv2_huge": _size(27, 352, 2),
}


class Convolution(nn.Module):
    """A convolution of stride 1 with a bias; of size 1 a linear layer, with a kernel `[F, G]`."""

    features: int
    size: int = 1
    depthwise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"]) -> Float[Array, "B H W {self.features}"]:
        inputs = 1 if self.depthwise else x.shape[-1]
        window = () if self.size == 1 else (self.size, self.size)
        kernel = self.param("kernel", kernel_initializer, (*window, inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.reshape(self.size, self.size, inputs, self.features)
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), depthwise=self.depthwise)
        return x + bias[None, None, None].astype(self.dtype)


class Patches(nn.Module):
    """A convolution whose stride is its size: a linear layer on patches that do not overlap.

    What is left over at the lower and right edges is not seen.
    """

    features: int
    size: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"]
    ) -> Float[Array, "B H//{self.size} W//{self.size} {self.features}"]:
        batch, rows, columns, inputs = x.shape
        size, rows, columns = self.size, rows // self.size, columns // self.size
        kernel = self.param("kernel", kernel_initializer, (size, size, inputs, self.features))
        x = x[:, : rows * size, : columns * size].astype(self.dtype)
        x = x.reshape(batch, rows, size, columns, size, inputs).swapaxes(2, 3)
        x = x.reshape(batch, rows, columns, size * size * inputs)
        x = x @ kernel.reshape(-1, self.features).astype(self.dtype)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x + bias[None, None, None].astype(self.dtype)


class Stem(nn.Module):
    """Patches of 4x4 pixels, normalised."""

    features: int
    dtype: Any = jnp.float32
    epsilon: float = LayerNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H//4 W//4 F"]:
        x = Patches(self.features, 4, self.dtype, name="patches")(x)
        return LayerNorm(self.dtype, self.epsilon, name="norm")(x)


class Downsample(nn.Module):
    """Patches of 2x2 positions that are normalised."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B H//2 W//2 G"]:
        x = LayerNorm(self.dtype, name="norm")(x)
        return Patches(self.features, 2, self.dtype, name="patches")(x)


class ResponseNorm(nn.Module):
    """Global response normalisation: features by their norm over the positions, of their mean."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])[None, None, None]
        x = at_least_float32(x)
        squares = jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)
        # A feature that is 0 everywhere has a norm of 0, and no gradient that is a number.
        norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        share = norm / (jnp.mean(norm, axis=-1, keepdims=True) + GRN_EPSILON)
        return (x + scale * (x * share) + bias).astype(self.dtype)


class Block(nn.Module):
    """7x7 depthwise, normalised, then two linear layers, the first 4 times as wide; a shortcut.

    Attributes:
        version: 1 has a factor for every feature at the end, 2 `ResponseNorm` in the middle.
        drop_rate: of stochastic depth, see `drop_path`.
    """

    version: int
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B H W F"]:
        features = x.shape[-1]
        y = Convolution(features, 7, depthwise=True, dtype=self.dtype, name="depthwise")(x)
        y = LayerNorm(self.dtype, name="norm")(y)
        y = Convolution(4 * features, dtype=self.dtype, name="expand")(y)
        y = nn.gelu(y, approximate=False)
        if self.version == 2:
            y = ResponseNorm(self.dtype, name="response_norm")(y)
        y = Convolution(features, dtype=self.dtype, name="reduce")(y)
        if self.version == 1:
            start = nn.initializers.constant(LAYER_SCALE)
            y *= self.param("layer_scale", start, (features,))[None, None, None].astype(self.dtype)
        return x + drop_path(self, y, self.drop_rate)


class ConvNeXt(nn.Module):
    """ConvNeXt without its classifier.

    Attributes:
        size: one of `SIZES`, or another such.
        width: multiplies every channel count; 1 is the published network.
        dtype: of products and maps; parameters and sums of normalisations are float32 or wider.
        remat: one of `names.REMATS`.
        drop_path: the rate of stochastic depth of the last block; those before have less, in
            equal steps from 0.
    """

    size: Size
    width: float = 1.0
    dtype: Any = jnp.float32
    remat: str = "none"
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> StageMaps:
        """Maps images to the maps after each stage, at strides 4, 8, 16 and 32.

        The last is normalised, position by position, with the normalisation that the published
        network has between its mean over the positions and its classifier.

        Args:
            train, mask: are nothing to it. Given a key `dropout`, blocks are dropped.
        """
        channels = [round(count * self.width) for count in self.size.channels]
        rates = iter(np.linspace(0, self.drop_path, sum(self.size.blocks)).tolist())
        x = Stem(channels[0], self.dtype, name="stem")(x)
        stages = []
        for stage, count in enumerate(self.size.blocks, start=1):
            down = partial(Downsample, channels[stage - 1], self.dtype, name=f"downsample{stage}")
            chain: list[Callable[..., nn.Module]] = [down] if stage > 1 else []
            for block in range(count):
                options = self.size.version, next(rates), self.dtype
                chain.append(partial(Block, *options, name=f"stage{stage}_{block}"))
            x = run_in_order(self, chain, self.remat, x, train, mask)
            stages.append(x)
        stages[-1] = LayerNorm(self.dtype, name="norm")(x)
        return tuple(stages)

    @staticmethod
    def stage_of(module: str) -> int:
        """1 to 4; 0 the stem."""
        named = {"stem": 0, "norm": 4}
        return named[module] if module in named else int(re.findall(r"\d", module)[0])

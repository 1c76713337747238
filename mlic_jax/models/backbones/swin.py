"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) and V2 (Liu et al. 2022, arXiv 2111.09883).

Positions attend to those of their window, which in every second block lies half a window off. Of a
map that is no multiple of windows the published codes differ; here, as in transformers and
torchvision, it is padded with zeros at the lower and right edges, which are attended to. Along an
axis that is no longer than a window the window is as long as it, and is not shifted.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Float64, Int, Shaped

from mlic_jax.models.arrays import Float32Or64, RowMask, StageMaps
from mlic_jax.models.backbones.convnext import ConvNeXt, Stem, kernel_initializer
from mlic_jax.models.backbones.vit import resizing
from mlic_jax.models.layers import LayerNorm, drop_path, run_in_order
from mlic_jax.models.precision import at_least_float32

EPSILON = 1e-5
HEAD_FEATURES = 32  # of a query, a key and a value, in every stage of every published network
POSITION_WIDTH = 512  # of the hidden layer that the position biases of version 2 come from
HIGHEST_BIAS = 16.0  # of version 2
HIGHEST_SCALE = 100.0  # of its cosines
SHORTEST = 1e-12  # a query or key is divided by its length, or by this
OTHER_REGION = -100.0  # added to the score of what only the shift has brought into a window

RowsColumns = tuple[int, int]


class Size(NamedTuple):
    """Of a published network, by stages: its blocks, heads and the sides of its windows."""

    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    version: int


def _size(third: int, heads: int, version: int, *windows: int) -> Size:
    """Of so many blocks in the third stage, so many heads in the first, doubled by each.

    Args:
        windows: of all stages; or of the last and of those before it.
    """
    *last, window = windows
    sides = (window, window, window, *(last or [window]))
    return Size((2, 2, third, 2), (heads, 2 * heads, 4 * heads, 8 * heads), sides, version)


SIZES = {
    "swin_tiny": _size(6, 3, 1, 7),
    "swin_small": _size(18, 3, 1, 7),
    "swin_base": _size(18, 4, 1, 7),
    "swin_large": _size(18, 6, 1, 7),
    "swin_base_window12": _size(18, 4, 1, 12),
    "swin_large_window12": _size(18, 6, 1, 12),
    "swinv2_tiny": _size(6, 3, 2, 8),
    "swinv2_small": _size(18, 3, 2, 8),
    "swinv2_base": _size(18, 4, 2, 8),
    # At 256 pixels, for which these are, their last map is 8x8.
    "swinv2_tiny_window16": _size(6, 3, 2, 8, 16),
    "swinv2_small_window16": _size(18, 3, 2, 8, 16),
    "swinv2_base_window16": _size(18, 4, 2, 8, 16),
}


def dense(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    """A linear layer, as all of these are."""
    return nn.Dense(features, use_bias, dtype, kernel_init=kernel_initializer, name=name)


class Downsample(nn.Module):
    """Four positions to one of twice the features, an odd map padded with zeros.

    Version 1 normalises before the linear layer, version 2 after it.
    """

    version: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B -(-H//2) -(-W//2) 2*F"]:
        features = x.shape[-1]
        rows, columns = (-(-length // 2) * 2 for length in x.shape[1:3])
        x, batch = pad_to(x, (rows, columns)), x.shape[0]
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, features)
        # Column by column, as the published kernels have it.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows // 2, columns // 2, 4 * features)
        norm = LayerNorm(self.dtype, EPSILON, name="norm")
        reduction = dense(2 * features, self.dtype, "reduction", use_bias=False)
        return reduction(norm(x)) if self.version == 1 else norm(reduction(x))


class Cut(NamedTuple):
    """How a map is cut into n windows of T positions each, after a shift up and to the left."""

    shape: RowsColumns  # of the map
    window: RowsColumns
    shift: RowsColumns

    @classmethod
    def of(cls, shape: RowsColumns, side: int, is_shifted: bool) -> "Cut":
        """Into squares where the map is large enough, shifted by half of their side."""
        rows, columns = (min(length, side) for length in shape)
        down, right = (side // 2 if is_shifted and length > side else 0 for length in shape)
        return cls(shape, (rows, columns), (down, right))

    @property
    def padded(self) -> RowsColumns:
        """The shape of the map, padded to whole windows."""
        rows, columns = (-(-n // k) * k for n, k in zip(self.shape, self.window, strict=True))
        return rows, columns

    def split(self, x: Shaped[Array, "B H W F"]) -> Shaped[Array, "B n T F"]:
        """The windows of a map."""
        batch, *_, features = x.shape
        (rows, columns), (height, width) = self.padded, self.window
        x = pad_to(x, self.padded)
        if any(self.shift):
            x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = x.reshape(batch, rows // height, height, columns // width, width, features)
        return x.swapaxes(2, 3).reshape(batch, -1, height * width, features)

    def join(self, x: Shaped[Array, "B n T F"]) -> Shaped[Array, "B H W F"]:
        """The inverse of `split`."""
        batch, *_, features = x.shape
        (rows, columns), (height, width) = self.padded, self.window
        x = x.reshape(batch, rows // height, columns // width, height, width, features)
        x = x.swapaxes(2, 3).reshape(batch, rows, columns, features)
        if any(self.shift):
            x = jnp.roll(x, self.shift, (1, 2))
        return x[:, : self.shape[0], : self.shape[1]]

    def mask(self) -> Float32[np.ndarray, "n T T"]:
        """What is added to scores: `OTHER_REGION` where the shift has brought a key from afar."""
        of_axes = []
        for length, side, shift in zip(self.padded, self.window, self.shift, strict=True):
            # The last window ends with what was at the start.
            place = np.arange(length)
            of_axes.append((place >= length - shift).reshape(-1, side))
        rows, columns = of_axes
        region = 2 * rows[:, None, :, None] + columns[None, :, None, :]
        region = region.reshape(len(rows) * len(columns), -1)
        is_other = region[:, :, None] != region[:, None]
        return np.where(is_other, OTHER_REGION, 0).astype(np.float32)


def pad_to(x: Shaped[Array, "B H W F"], shape: RowsColumns) -> Shaped[Array, "B _ _ F"]:
    """A map with zeros at its lower and right edges."""
    rows, columns = (wanted - given for wanted, given in zip(shape, x.shape[1:3], strict=True))
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


def distance_index(window: RowsColumns, side: int) -> Int[np.ndarray, "T T"]:
    """Of every query and key of a window, the place in a table of all distances.

    The table has those of a square window of a side, rows and columns from the most negative on.
    """
    rows, columns = (place.ravel() for place in np.indices(window))
    rows, columns = (place[:, None] - place[None] for place in (rows, columns))
    return (rows + side - 1) * (2 * side - 1) + columns + side - 1


def window_of(rows: int) -> int | None:
    """The side of the windows whose distances a table of `rows` has; None: of no square ones."""
    reach = math.isqrt(rows)
    return (reach + 1) // 2 if reach % 2 and reach**2 == rows else None


def resized(table: Float[np.ndarray, "rows N"], rows: int) -> Float32[np.ndarray, "{rows} N"]:
    """A table of biases for the distances in windows of another side, stretched over them.

    Bicubically, as Swin's authors do it.
    """
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    matrix = resizing(old, new, antialias=False)
    grid = np.einsum("hy,wx,yxn->hwn", matrix, matrix, table.reshape(old, old, -1))
    return grid.reshape(rows, -1).astype(np.float32)


def log_distances(side: int, longest: int) -> Float64[np.ndarray, "({side}*2-1)**2 2"]:
    """The table of distances that `distance_index` is of, as version 2 takes them.

    Logarithms to base 8, with its sign: of 1 and 8 times a distance, as a share of the `longest`.
    """
    reach = 8 * np.arange(1 - side, side) / max(longest, 1)
    reach = np.sign(reach) * np.log2(np.abs(reach) + 1) / np.log2(8)
    return np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)


def unit(x: Float[Array, "*axes"]) -> Float32Or64[Array, "*axes"]:
    """Vectors of length 1, along the last axis; 0 where there is no direction."""
    x = at_least_float32(x)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squares, SHORTEST**2))


class PositionBias(nn.Module):
    """What is added to scores for where a key is from a query.

    Version 1 has a number for every distance in a window of training; version 2 computes one from
    logarithms of the distance, as a share of the longest in training.
    """

    heads: int
    side: int
    version: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, window: RowsColumns) -> Float32Or64[Array, "{self.heads} T T"]:
        """For windows of a shape no larger than that of training."""
        if self.version == 1:
            shape = ((2 * self.side - 1) ** 2, self.heads)
            table = self.param("bias", kernel_initializer, shape)
            index = distance_index(window, self.side)
        else:
            side, dtype = max(window), np.promote_types(self.dtype, np.float32)
            table = jnp.asarray(log_distances(side, self.side - 1), dtype)
            table = nn.relu(dense(POSITION_WIDTH, dtype, "hidden")(table))
            table = dense(self.heads, dtype, "out", use_bias=False)(table)
            table = HIGHEST_BIAS * nn.sigmoid(table)
            index = distance_index(window, side)
        bias = at_least_float32(table)[index.ravel()].reshape(*index.shape, self.heads)
        return bias.transpose(2, 0, 1)


class Attention(nn.Module):
    """The positions of every window attend to each other.

    Version 1 compares queries and keys by their product, version 2 by their cosine.

    Attributes:
        side: of a window in training.
    """

    heads: int
    side: int
    version: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B n T F"], cut: Cut) -> Float[Array, "B n T F"]:
        """What positions of windows see; `cut` is how a map was cut into them."""

        def project(name: str, use_bias: bool = True) -> Array:
            y = dense(x.shape[-1], self.dtype, name, use_bias)(x)
            return y.reshape(*y.shape[:-1], self.heads, -1)

        query, value = project("query"), project("value")
        key = project("key", use_bias=self.version == 1)
        if self.version == 1:
            query *= query.shape[-1] ** -0.5
        else:
            start = nn.initializers.constant(math.log(10))
            logarithm = self.param("logit_scale", start, (self.heads,))
            factor = jnp.exp(jnp.minimum(logarithm, math.log(HIGHEST_SCALE)))
            query = (unit(query) * factor[None, None, None, :, None]).astype(self.dtype)
            key = unit(key).astype(self.dtype)
        position = PositionBias(self.heads, self.side, self.version, self.dtype, name="position")
        bias = position(cut.window)[None]
        if any(cut.shift):
            bias += jnp.asarray(cut.mask(), bias.dtype)[:, None]
        # Windows of 49 or 64 positions, with a bias: nothing that a fused attention would spare.
        scores = jnp.einsum("bnqhd,bnkhd->bnhqk", query, key, preferred_element_type=bias.dtype)
        weights = nn.softmax(scores + bias[None]).astype(self.dtype)
        seen = jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value).reshape(x.shape)
        return dense(x.shape[-1], self.dtype, "out")(seen)


class Block(nn.Module):
    """Attention, then two linear layers, the first 4 times as wide; a shortcut past each.

    Version 1 normalises what goes into these branches, version 2 what comes out of them.

    Attributes:
        side: of a window in training.
        is_shifted: whether windows lie half of one off.
        drop_rate: of stochastic depth, see `drop_path`.
    """

    heads: int
    side: int
    version: int
    is_shifted: bool
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B H W F"]:
        cut = Cut.of((x.shape[1], x.shape[2]), self.side, self.is_shifted)
        attention = Attention(self.heads, self.side, self.version, self.dtype, name="attention")
        expand = dense(4 * x.shape[-1], self.dtype, "expand")
        reduce = dense(x.shape[-1], self.dtype, "reduce")
        branches = {
            "norm1": lambda x: cut.join(attention(cut.split(x), cut)),
            "norm2": lambda x: reduce(nn.gelu(expand(x), approximate=False)),
        }
        for name, branch in branches.items():
            norm = LayerNorm(self.dtype, EPSILON, name=name)
            y = branch(norm(x)) if self.version == 1 else norm(branch(x))
            x += drop_path(self, y, self.drop_rate)
        return x


class Swin(nn.Module):
    """Swin Transformer without its classifier.

    Attributes:
        size: one of `SIZES`, or another such.
        width: multiplies the features of every head, and so all channel counts; 1 is the published
            network.
        dtype: of products and maps; parameters, normalisations and attention's sums are float32 or
            wider.
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

        The last is normalised, position by position, as in the published network before its mean.

        Args:
            train, mask: are nothing to it. Given a key `dropout`, branches are dropped.
        """
        version, of_head = self.size.version, round(HEAD_FEATURES * self.width)
        rates = iter(np.linspace(0, self.drop_path, sum(self.size.blocks)).tolist())
        x = Stem(self.size.heads[0] * of_head, self.dtype, EPSILON, name="stem")(x)
        stages = []
        for stage, count in enumerate(self.size.blocks, start=1):
            down = partial(Downsample, version, self.dtype, name=f"downsample{stage}")
            chain: list[Callable[..., nn.Module]] = [down] if stage > 1 else []
            heads, side = self.size.heads[stage - 1], self.size.windows[stage - 1]
            for block in range(count):
                options = heads, side, version, block % 2 == 1, next(rates), self.dtype
                chain.append(partial(Block, *options, name=f"stage{stage}_{block}"))
            x = run_in_order(self, chain, self.remat, x, train, mask)
            stages.append(x)
        stages[-1] = LayerNorm(self.dtype, EPSILON, name="norm")(x)
        return tuple(stages)

    stage_of = staticmethod(ConvNeXt.stage_of)  # by the same names

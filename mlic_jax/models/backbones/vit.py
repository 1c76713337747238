"""Vision Transformers: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) and its descendants.

DINOv2 (Oquab et al. 2023, arXiv 2304.07193) scales its branches, with registers (Darcet et al.
2024, arXiv 2309.16588) has tokens that are of no patch, CLIP's image tower (Radford et al. 2021,
arXiv 2103.00020) normalises its tokens before the first block, and DINOv3 (Siméoni et al. 2025,
arXiv 2508.10104) turns queries and keys by where they are; some normalise those (Dehghani et al.
2023, arXiv 2302.05442). All maps are at the stride of a patch.
"""

import math
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64

from mlic_jax.errors import UsageError
from mlic_jax.models.arrays import Float32Or64, RowMask, StageMaps
from mlic_jax.models.backbones.convnext import Patches, kernel_initializer
from mlic_jax.models.layers import LayerNorm, drop_path, run_in_order
from mlic_jax.models.ops.attention import attend
from mlic_jax.models.precision import at_least_float32

ROPE_BASE = 100.0  # of the periods by which DINOv3 turns


class Kind(NamedTuple):
    """What published networks have in common, whatever their size.

    Attributes:
        is_rotary: whether queries and keys are turned by where they are, and no positions learned.
        antialias: how the table of positions is resized to another grid, bicubically in any case.
            With it as timm does (Keys' a = -1/2, and wider where the grid is smaller), without as
            `transformers` (a = -3/4).
        registers: tokens beside that of the class which are of no patch.
        layer_scale: what the factors of every branch start at; None: there are none.
        is_clip: patches without a bias, tokens normalised before the first block.
        quick_gelu: x sigmoid(1.702 x) for the exact one.
        key_bias: whether keys have one, as queries and values do.
        qk_norm: whether queries and keys are normalised, head by head.
        epsilon: of normalisations.
    """

    is_rotary: bool = False
    antialias: bool = True
    registers: int = 0
    layer_scale: float | None = None
    is_clip: bool = False
    quick_gelu: bool = False
    key_bias: bool = True
    qk_norm: bool = False
    epsilon: float = 1e-6


class Size(NamedTuple):
    """A published network: its blocks, features, heads, and pixels of a side of a patch."""

    depth: int
    features: int
    heads: int
    patch: int
    kind: Kind


VIT = Kind()
VIT_QK_NORM = Kind(qk_norm=True)
DINOV2 = Kind(antialias=False, layer_scale=1e-5)
# Its authors' code resizes positions as if there were a tenth of a patch more, which once helped
# against rounding; `transformers` and this do not. With registers theirs does as all others do.
DINOV2_REGISTERS = DINOV2._replace(antialias=True, registers=4)
OPENCLIP = Kind(antialias=False, is_clip=True, epsilon=1e-5)
CLIP = OPENCLIP._replace(quick_gelu=True)
DINOV3 = Kind(is_rotary=True, registers=4, layer_scale=1e-5, key_bias=False, epsilon=1e-5)

_TINY, _SMALL, _BASE, _LARGE = (12, 192, 3), (12, 384, 6), (12, 768, 12), (24, 1024, 16)
_DINO_SIZES = {"small": _SMALL, "base": _BASE, "large": _LARGE}
_CLIP_SIZES = {
    "base_patch32": (*_BASE, 32),
    "base_patch16": (*_BASE, 16),
    "large_patch14": (*_LARGE, 14),
}

SIZES = {
    "vit_tiny_patch16": Size(*_TINY, 16, VIT),
    "vit_small_patch16": Size(*_SMALL, 16, VIT),
    "vit_small_patch32": Size(*_SMALL, 32, VIT),
    "vit_base_patch16": Size(*_BASE, 16, VIT),
    "vit_base_patch32": Size(*_BASE, 32, VIT),
    "vit_large_patch14": Size(*_LARGE, 14, VIT),
    "vit_large_patch16": Size(*_LARGE, 16, VIT),
    "vit_large_patch32": Size(*_LARGE, 32, VIT),
    "vit_small_patch16_qk_norm": Size(*_SMALL, 16, VIT_QK_NORM),
    "vit_base_patch16_qk_norm": Size(*_BASE, 16, VIT_QK_NORM),
    "vit_large_patch16_qk_norm": Size(*_LARGE, 16, VIT_QK_NORM),
    **{f"dinov2_{name}": Size(*size, 14, DINOV2) for name, size in _DINO_SIZES.items()},
    **{
        f"dinov2_{name}_registers": Size(*size, 14, DINOV2_REGISTERS)
        for name, size in _DINO_SIZES.items()
    },
    **{f"clip_vit_{name}": Size(*size, CLIP) for name, size in _CLIP_SIZES.items()},
    # Trained without quick GELU, in which alone they are other than OpenAI's.
    **{f"openclip_vit_{name}": Size(*size, OPENCLIP) for name, size in _CLIP_SIZES.items()},
    **{f"dinov3_{name}": Size(*size, 16, DINOV3) for name, size in _DINO_SIZES.items()},
}


def side_of(rows: int) -> int | None:
    """Of the square grid whose positions a table of `rows` has; None: of no grid.

    The first row may be the class token's: a square and one more are never both squares.
    """
    root = math.isqrt(rows)
    return root if root > 0 and rows - root**2 in (0, 1) else None


def parts_of(
    table: Float32Or64[Array, "rows F"],
) -> tuple[Float32Or64[Array, "1 F"], Float32Or64[Array, "S S F"]]:
    """Of a table of positions that of the class token, 0 where there is none, and the grid.

    Raises:
        UsageError: its rows are not those of a square grid, with or without the class token's.
    """
    side = side_of(len(table))
    if side is None:
        raise UsageError(
            f"there are {len(table)} positions; they must be those of a square grid, with or "
            "without the class token's, such as 197 or 196"
        )
    of_class, grid = table[: len(table) - side**2], table[-(side**2) :]
    of_class = of_class if len(of_class) else jnp.zeros_like(table[:1])
    return of_class, grid.reshape(side, side, -1)


def resized(
    grid: Float32Or64[Array, "S S F"], shape: tuple[int, int], antialias: bool
) -> Float32Or64[Array, "{shape[0]} {shape[1]} F"]:
    """Positions for the patches of other images; see `Kind.antialias`."""
    if grid.shape[:2] == shape:
        return grid
    down, across = (jnp.asarray(resizing(len(grid), new, antialias), grid.dtype) for new in shape)
    return jnp.einsum("hy,wx,yxf->hwf", down, across, grid, precision=lax.Precision.HIGHEST)


def resizing(old: int, new: int, antialias: bool) -> Float64[np.ndarray, "{new} {old}"]:
    """A matrix `[new, old]` that resizes an axis bicubically, as PyTorch's `interpolate` does.

    With `antialias` the edges are left out and the rest weighs more, without they go on outwards.
    """
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5
    reach = math.ceil(2 * stretch)
    matrix = np.zeros((new, old))
    for row, centre in enumerate(centres):
        taps = np.arange(math.floor(centre) - reach, math.floor(centre) + reach + 2)
        weights = _cubic((taps - centre) / stretch, -0.5 if antialias else -0.75)
        if antialias:
            is_inside = (taps >= 0) & (taps < old)
            taps, weights = taps[is_inside], weights[is_inside]
            weights /= weights.sum()
        np.add.at(matrix[row], taps.clip(0, old - 1), weights)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel: of a width of 4, and 1 at 0."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def frequencies(features: int) -> Float64[np.ndarray, " quarter"]:
    """How often the pairs of a head's features turn from the middle of an image to its edge."""
    return ROPE_BASE ** -np.arange(0, 1, 4 / features)


@lru_cache(maxsize=8)
def rotations(
    rows: int, columns: int, features: int
) -> tuple[
    Float64[np.ndarray, "{rows}*{columns} {features}"],
    Float64[np.ndarray, "{rows}*{columns} {features}"],
]:
    """Cosines and sines `[rows * columns, features]` by which a head's features are turned.

    The first half of the pairs turns with the row and the second with the column, from -1 to 1
    across the image, the later ones more slowly.
    """
    axes = [2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = 2 * np.pi * places * frequencies(features)
    angles = np.tile(angles.reshape(len(places), -1), 2)
    return np.cos(angles), np.sin(angles)


def turn(
    x: Float[Array, "B T N F"],
    cosines: Float64[np.ndarray, "P F"],
    sines: Float64[np.ndarray, "P F"],
) -> Float[Array, "B T N F"]:
    """Turns the pairs (f, f + F/2) of the last tokens, those of patches, and none of the others."""
    first = x.shape[1] - len(cosines)
    patches = at_least_float32(x[:, first:])
    cos, sin = (jnp.asarray(y, patches.dtype)[None, :, None] for y in (cosines, sines))
    low, high = jnp.split(patches, 2, axis=-1)
    turned = patches * cos + jnp.concatenate([-high, low], axis=-1) * sin
    return jnp.concatenate([x[:, :first], turned.astype(x.dtype)], axis=1)


class Stem(nn.Module):
    """Images to tokens: that of the class, the registers, and the patches row by row.

    The table of positions `[1 + S^2, F]`, the class token's first, is of a square grid, and is
    resized for the patches of any other; one from a checkpoint may lack the first row. A fresh one
    is of about as many patches as there are.
    """

    size: Size
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B T {self.features}"]:
        kind, features = self.size.kind, self.features
        has_bias = not kind.is_clip
        x = Patches(features, self.size.patch, self.dtype, has_bias, name="patches")(x)
        first = self.param("class_token", kernel_initializer, (features,))[None]
        if not kind.is_rotary:
            shape = x.shape[1], x.shape[2]
            of_class, grid = parts_of(self._positions(math.isqrt(shape[0] * shape[1])))
            first = first + of_class
            x += resized(grid, shape, kind.antialias).astype(self.dtype)[None]
        x = x.reshape(x.shape[0], -1, features)
        if kind.registers:
            registers = self.param("registers", kernel_initializer, (kind.registers, features))
            first = jnp.concatenate([first, registers])
        first = jnp.broadcast_to(first.astype(self.dtype)[None], (x.shape[0], *first.shape))
        x = jnp.concatenate([first, x], axis=1)
        if kind.is_clip:
            x = LayerNorm(self.dtype, kind.epsilon, name="norm")(x)
        return x

    def _positions(self, side: int) -> Float32Or64[Array, "rows F"]:
        """The table: as it is, or fresh."""
        shape = (1 + side**2, self.features)
        if self.has_variable("params", "positions"):
            shape = self.get_variable("params", "positions").shape
        return self.param("positions", kernel_initializer, shape)


class Attention(nn.Module):
    """Of tokens to each other, by heads.

    Attributes:
        grid: of the patches, by whose places queries and keys are turned; None: they are not.
    """

    kind: Kind
    heads: int
    grid: tuple[int, int] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        features = x.shape[-1]
        dense = partial(nn.Dense, features, dtype=self.dtype, kernel_init=kernel_initializer)
        of_heads = (*x.shape[:2], self.heads, features // self.heads)
        query = dense(name="query")(x).reshape(of_heads)
        key = dense(use_bias=self.kind.key_bias, name="key")(x).reshape(of_heads)
        value = dense(name="value")(x).reshape(of_heads)
        if self.kind.qk_norm:
            query = LayerNorm(self.dtype, self.kind.epsilon, name="query_norm")(query)
            key = LayerNorm(self.dtype, self.kind.epsilon, name="key_norm")(key)
        if self.grid is not None:
            turned = rotations(*self.grid, features // self.heads)
            query, key = turn(query, *turned), turn(key, *turned)
        return dense(name="out")(attend(query, key, value).reshape(x.shape))


class Block(nn.Module):
    """Attention, then two linear layers, the first 4 times as wide; both normalised before.

    Attributes:
        grid: see `Attention`.
        drop_rate: of stochastic depth, see `drop_path`.
    """

    kind: Kind
    heads: int
    grid: tuple[int, int] | None
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T F"], train: bool, mask: RowMask | None
    ) -> Float[Array, "B T F"]:
        norm = partial(LayerNorm, self.dtype, self.kind.epsilon)
        attention = Attention(self.kind, self.heads, self.grid, self.dtype, name="attention")
        x = self._add(x, attention(norm(name="norm1")(x)), "layer_scale1")
        return self._add(x, self._mix(norm(name="norm2")(x)), "layer_scale2")

    def _mix(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        features = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_initializer)
        x = dense(4 * features, name="expand")(x)
        x = x * nn.sigmoid(1.702 * x) if self.kind.quick_gelu else nn.gelu(x, approximate=False)
        return dense(features, name="reduce")(x)

    def _add(
        self, x: Float[Array, "B T F"], branch: Float[Array, "B T F"], name: str
    ) -> Float[Array, "B T F"]:
        if self.kind.layer_scale is not None:
            start = nn.initializers.constant(self.kind.layer_scale)
            scale = self.param(name, start, x.shape[-1:])
            branch *= scale[None, None].astype(self.dtype)
        return x + drop_path(self, branch, self.drop_rate)


class ViT(nn.Module):
    """A Vision Transformer without what follows its last normalisation.

    Attributes:
        size: one of `SIZES`, or another such.
        width: multiplies the number of heads, all as wide as published; 1 is the published network.
        dtype: of products and maps; parameters, softmax and sums of normalisations are float32 or
            wider.
        remat: one of `names.REMATS`; a stage is a quarter of the blocks.
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
        """Maps images to the patches after 1/4, 1/2, 3/4 and all of the blocks, as four maps.

        All are at the stride of a patch, and what is left over at the lower and right edges is not
        seen. The last is normalised, with the normalisation that the published network has before
        its classifier, which takes the class token alone: CLIP normalises no other.

        Args:
            train, mask: are nothing to it. Given a key `dropout`, branches are dropped.
        """
        size, kind = self.size, self.size.kind
        heads = max(round(size.heads * self.width), 1)
        features = size.features // size.heads * heads
        grid = x.shape[1] // size.patch, x.shape[2] // size.patch
        as_map = x.shape[0], *grid, features
        rates = np.linspace(0, self.drop_path, size.depth).tolist()
        options = kind, heads, grid if kind.is_rotary else None
        chain = [
            partial(Block, *options, rate, self.dtype, name=f"block{number}")
            for number, rate in enumerate(rates)
        ]
        x = Stem(size, features, self.dtype, name="stem")(x)
        stages = []
        ends = [-(-size.depth * quarter // 4) for quarter in range(5)]
        for start, end in pairwise(ends):
            x = run_in_order(self, chain[start:end], self.remat, x, train, mask)
            stages.append(x)
        stages[-1] = LayerNorm(self.dtype, kind.epsilon, name="norm")(x)
        first = 1 + kind.registers
        return tuple(stage[:, first:].reshape(as_map) for stage in stages)

    def fit(self, given: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        """Parameters of a checkpoint, its positions resized to the grid of fresh parameters.

        Raises:
            UsageError: see `parts_of`.
        """
        if self.size.kind.is_rotary or "positions" not in given.get("stem", {}):
            return given
        of_class, grid = parts_of(jnp.asarray(given["stem"]["positions"]))
        _, wanted = parts_of(jnp.asarray(fresh["stem"]["positions"]))
        grid = resized(grid, (len(wanted), len(wanted)), self.size.kind.antialias)
        table = np.concatenate([of_class, grid.reshape(-1, grid.shape[-1])])
        return {**given, "stem": {**given["stem"], "positions": table}}

    def stage_of(self, module: str) -> int:
        """The blocks from 1 on; 0 the stem, and of the last normalisation one more than of all."""
        named = {"stem": 0, "norm": self.size.depth + 1}
        return named[module] if module in named else 1 + int(module.removeprefix("block"))

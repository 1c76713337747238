"""3x3 convolution at stride 1 by minimal filtering, for CPUs.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): every
2x2 tile of the result comes from 16 products instead of 36, each a matrix product over all tiles
and channels. That takes 2.25 times fewer multiplications, for some additions before and after, and
is worth it from about 128 channels on. Errors are those of float32 in a sum of so many products;
in fewer bits they would not be.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

TILE = 2  # positions of the result a side; each reads TILE + 2 of the input

Grid = Sequence[Sequence[Float32[Array, "..."]]]


def winograd(
    x: Float32[Array, "B H W F"], kernel: Float32[Array, "3 3 F G"]
) -> Float32[Array, "B H W G"]:
    """Convolves at stride 1 with zero padding of 1."""
    return _filter(x, _transformed_kernel(kernel), contracts=0)


def winograd_gradients(
    x: Float32[Array, "B H W F"],
    kernel: Float32[Array, "3 3 F G"],
    g: Float32[Array, "B H W G"],
) -> tuple[Float32[Array, "B H W F"], Float32[Array, "3 3 F G"]]:
    """Of x and of the kernel, for the cotangent `g` of the result."""
    # The gradient of x is g filtered with the flipped kernel, which swaps transforms 0 and 3.
    transformed = _transformed_kernel(kernel)
    mirrored = [[transformed[i][j] for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    return _filter(g, mirrored, contracts=1), _kernel_gradient(x, g)


def _filter(x: Array, transformed_kernel: Grid, contracts: int) -> Array:
    """`[B, H, W, G]`: x times the kernel, summed over that axis of its matrices."""
    batch, height, width, _ = x.shape
    products = _products(_transformed_tiles(x), transformed_kernel, (1, contracts))
    rows, columns = (-(-side // TILE) for side in (height, width))
    result = jnp.stack([jnp.stack(row) for row in _both_axes(_output_transform, products)])
    result = result.reshape(TILE, TILE, batch, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return result.reshape(batch, rows * TILE, columns * TILE, -1)[:, :height, :width]


def _kernel_gradient(x: Array, g: Array) -> Array:
    """`[3, 3, F, G]`: the adjoint of it all, for a given x."""
    tails = [(0, -side % TILE, 0) for side in g.shape[1:3]]
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *tails, (0, 0, 0)])
    tiles = [[_flat(g[:, i::TILE, j::TILE]) for j in range(TILE)] for i in range(TILE)]
    products = _products(_transformed_tiles(x), _both_axes(_output_adjoint, tiles), (0, 0))
    return jnp.stack([jnp.stack(row) for row in _both_axes(_kernel_adjoint, products)])


def _products(lefts: Grid, rights: Grid, axes: tuple[int, int]) -> Grid:
    """The matrix product of every pair, contracted over these axes."""
    contraction = (((axes[0],), (axes[1],)), ((), ()))
    return [
        [lax.dot_general(left, right, contraction) for left, right in zip(*rows, strict=True)]
        for rows in zip(lefts, rights, strict=True)
    ]


def _transformed_kernel(kernel: Array) -> Grid:
    """16 of `[F, G]`."""
    # The barrier keeps XLA from reading the whole kernel for each of them.
    rows = lax.optimization_barrier(_kernel_transform(*kernel))
    return [_kernel_transform(*row) for row in rows]


def _transformed_tiles(x: Array) -> Grid:
    """The 4x4 values of every tile, transformed: 16 of `[B ceil(H / 2) ceil(W / 2), F]`."""
    margins = [(1, 1 + side % TILE, 0) for side in x.shape[1:3]]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    # The barrier keeps what made x from being computed for each of the 16 anew.
    padded = lax.optimization_barrier(padded)
    last = [side - 3 for side in padded.shape[1:3]]
    values = [
        [_flat(padded[:, i : i + last[0] : TILE, j : j + last[1] : TILE]) for j in range(4)]
        for i in range(4)
    ]
    return _both_axes(_input_transform, values)


def _flat(x: Array) -> Array:
    """Positions of all images in one axis: of such matrices alone XLA's products are fast."""
    return x.reshape(-1, x.shape[-1])


def _both_axes(transform: Callable[..., Sequence[Array]], grid: Grid) -> Grid:
    """A transform of one axis, applied to both of a grid."""
    rows = [transform(*row) for row in grid]
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _input_transform(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _kernel_transform(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _kernel_adjoint(a, b, c, d):
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _output_transform(a, b, c, d):
    return a + b + c, b - c - d


def _output_adjoint(a, b):
    return a, a + b, a - b, -b

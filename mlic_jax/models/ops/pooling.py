"""The pooling of a ResNet and of its relatives.

That of maxima has a gradient formulated for the platform it runs on. XLA's CPU backend computes it
with arrays of every position's indices, which takes a tenth of a training step; here a window
remembers where its first maximum was.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.precision import at_least_float32

SIZE = 3
TAPS = [(i, j) for i in range(SIZE) for j in range(SIZE)]


@jax.custom_vjp
def max_pool(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """Maximum over 3x3 windows at stride 2, padded with -inf by 1.

    The gradient goes to the first of equal maxima, row by row, as in PyTorch.
    """
    return plain(x)


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    pooled = plain(x)
    return pooled, (x, pooled)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    return (lax.platform_dependent(*saved, g, cpu=gradient_by_taps, default=plain_gradient),)


max_pool.defvjp(_forward, _backward)


def plain(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """`max_pool` as XLA has it."""
    return nn.max_pool(x, (SIZE, SIZE), (2, 2), ((1, 1), (1, 1)))


def plain_gradient(
    x: Float[Array, "B H W F"],
    pooled: Float[Array, "B -(-H//2) -(-W//2) F"],
    g: Float[Array, "B -(-H//2) -(-W//2) F"],
) -> Float[Array, "B H W F"]:
    """The gradient of `plain` as JAX derives it, for the cotangent `g` of its result `pooled`."""
    del pooled
    return jax.vjp(plain, x)[1](g)[0]


def gradient_by_taps(
    x: Float[Array, "B H W F"],
    pooled: Float[Array, "B -(-H//2) -(-W//2) F"],
    g: Float[Array, "B -(-H//2) -(-W//2) F"],
) -> Float[Array, "B H W F"]:
    """The same, as the sum over the nine taps of a window of what each of them gets."""
    height, width = x.shape[1:3]
    # The barriers keep both arrays from being computed anew for every tap.
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    padded = lax.optimization_barrier(padded)
    first = jnp.full(g.shape, len(TAPS), jnp.int8)
    for tap, (i, j) in reversed(list(enumerate(TAPS))):
        is_maximum = padded[:, i : i + height : 2, j : j + width : 2] == pooled
        first = jnp.where(is_maximum, jnp.int8(tap), first)
    first = lax.optimization_barrier(first)
    total = jnp.zeros(x.shape, g.dtype)
    for tap, (i, j) in enumerate(TAPS):
        config = (_spread(i, g.shape[1], height), _spread(j, g.shape[2], width))
        of_tap = jnp.where(first == tap, g, jnp.zeros((), g.dtype))
        total += lax.pad(of_tap, jnp.zeros((), g.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    return total


def _spread(offset: int, windows: int, positions: int) -> tuple[int, int, int]:
    """Of `lax.pad`: puts what one tap of every window gets where it lies along an axis."""
    before = offset - 1
    return before, positions - before - (2 * windows - 1), 1


def average_pool(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """Mean over 2x2 windows at stride 2; at the end of an odd axis over what there is of one."""
    height, width = x.shape[1:3]
    # Half a window that is there twice has the mean of that half.
    if height % 2:
        x = jnp.concatenate([x, x[:, -1:]], axis=1)
    if width % 2:
        x = jnp.concatenate([x, x[:, :, -1:]], axis=2)
    batch, height, width, features = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, features), axis=(2, 4))


def blur_pool(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """Every other position after a blur with weights 1, 2 and 1 along both axes (Zhang 2019).

    The image goes on behind its edges mirrored, as in the published networks.
    """
    blurred = at_least_float32(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"))
    height, width = x.shape[1:3]
    rows = [blurred[:, i : i + height : 2] for i in range(3)]
    blurred = (rows[0] + 2 * rows[1] + rows[2]) / 4
    columns = [blurred[:, :, i : i + width : 2] for i in range(3)]
    return ((columns[0] + 2 * columns[1] + columns[2]) / 4).astype(x.dtype)

"""Attention over space for every label and channel, the operation at the centre of MSRN.

With features f and a label's embedding e, channel by channel: the weights of the positions are
a = softmax_p(e f_p), and the result is the mean of f under them, sum_p a_p f_p. That mean is the
derivative of logsumexp_p(e f_p) in e, so both gradients are closed:

    d out / d e   = sum_p a_p f_p^2 - out^2, the variance of f under the weights
    d out / d f_p = a_p (1 + e (f_p - out))

Nothing of size positions x labels x channels is ever stored: loops over the positions or over the
labels keep sums instead. The largest e f_p, which the softmax needs first, is at the maximum of f
where e >= 0 and else at its minimum.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Float32Or64
from mlic_jax.models.precision import at_least_float32

Moments = tuple[
    Float32Or64[Array, "B C D"], Float32Or64[Array, "B C D"], Float32Or64[Array, "B C D"]
]

# How many a step of a loop takes: so many times less often the sums, which are larger than a CPU's
# caches, travel through memory. XLA's CPU backend vectorises a reduction of up to 8.
POSITIONS = 7
LABELS = 4

# Of 2^r over -1/2 <= r <= 1/2, by ascending powers: fitted to the least relative error.
EXP2_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (
        1.000000072,
        0.6931469671,
        0.2402211972,
        0.05550713274,
        0.009675541333,
        0.001327647178,
    )
)


@jax.custom_vjp
def spatial_attention(
    features: Float[Array, "B P D"], embeddings: Float[Array, "C D"]
) -> Float32Or64[Array, "B C D"]:
    """Means of the features over the positions that every label attends to, channel by channel.

    Args:
        features: P >= 1 positions.
        embeddings: one a label.

    Returns:
        sum_p softmax_p(f[b, p, d] e[c, d]) f[b, p, d], in float32 (float64 where the features
        are), as are all sums on the way. Gradients have the dtypes of their arguments.
    """
    return _attend(features, embeddings)[0]


Partial = Float32Or64[Array, "..."]
Sums = tuple[Partial, Partial, Partial]  # as `Moments`, of parts in other shapes


def _attend(features: Array, embeddings: Array) -> tuple[Array, Moments]:
    """The result, and what the gradients need beside the arguments."""
    f, e, middle, largest = _prepare(features, embeddings)
    sums = lax.platform_dependent(f, e, largest, cpu=sums_by_position, default=sums_by_label)
    total, first, second = sums
    mean = first / total
    return middle + mean, (total, mean, second / total - jnp.square(mean))


def _forward(features: Array, embeddings: Array) -> tuple[Array, tuple[Array, Array, Moments]]:
    out, moments = _attend(features, embeddings)
    return out, (features, embeddings, moments)


def _backward(saved: tuple[Array, Array, Moments], g: Array) -> tuple[Array, Array]:
    features, embeddings, (total, mean, variance) = saved
    f, e, _, largest = _prepare(features, embeddings)
    # The weights as the sums of this platform have them.
    cpu, default = (partial(gradient_by_labels, exp=exp) for exp in (exp_of_negative, jnp.exp))
    features_grad = lax.platform_dependent(f, e, largest, mean, g / total, cpu=cpu, default=default)
    embeddings_grad = jnp.sum(g * variance, axis=0)
    return features_grad.astype(features.dtype), embeddings_grad.astype(embeddings.dtype)


spatial_attention.defvjp(_forward, _backward)


def _prepare(features: Array, embeddings: Array) -> tuple[Array, Array, Array, Array]:
    """Both in the sums' dtype, f counted from the middle of its range; and the largest e f.

    An offset of f changes no weight, but the variance, a difference of squares, would lose its
    digits to it. The middle, unlike a mean, rounds to the same value wherever XLA computes it.

    Returns:
        f `[B, P, D]`, e `[C, D]`, the middle `[B, 1, D]` and max_p e f_p `[B, C, D]`.
    """
    f, e = map(at_least_float32, (features, embeddings))
    highest, lowest = jnp.max(f, axis=1, keepdims=True), jnp.min(f, axis=1, keepdims=True)
    middle = (highest + lowest) / 2
    slope = e[None]
    return f - middle, e, middle, slope * (jnp.where(slope >= 0, highest, lowest) - middle)


def sums_by_position(
    features: Float32Or64[Array, "B P D"],
    embeddings: Float32Or64[Array, "C D"],
    largest: Float32Or64[Array, "B C D"],
) -> Moments:
    """Sums over the positions of w, w f and w f^2, where w = exp(e f - largest).

    All labels of a few positions at a time, which is fastest on a CPU, and as many such steps a
    block as there are blocks: one long sum in float32 would round twenty times worse.

    Args:
        largest: max_p e f_p.
    """

    def add_positions(sums: Sums, f: Array) -> tuple[Sums, None]:  # [K, B, 1, D]
        w = exp_of_negative(embeddings[None, None] * f - largest[None])
        # In one reduction: apart, each of the three would compute the weights anew.
        terms = lax.reduce((w, w * f, w * jnp.square(f)), zero, add, (0,))
        return add(sums, tuple(terms)), None

    def add_block(sums: Sums, block: Array) -> tuple[Sums, None]:
        return add(sums, lax.scan(add_positions, zeros, block)[0]), None

    add = partial(jax.tree.map, jnp.add)
    zero = (np.zeros((), largest.dtype),) * 3
    zeros = (jnp.zeros_like(largest),) * 3
    rows = jnp.moveaxis(features, 1, 0)[:, :, None]  # [P, B, 1, D]
    in_steps = len(rows) // POSITIONS * POSITIONS
    steps = rows[:in_steps].reshape(-1, POSITIONS, *rows.shape[1:])
    size = max(1, math.isqrt(len(steps)))
    in_blocks = len(steps) // size * size
    sums, _ = lax.scan(add_block, zeros, steps[:in_blocks].reshape(-1, size, *steps.shape[1:]))
    for block in (steps[in_blocks:], rows[None, in_steps:]):
        sums, _ = add_block(sums, block)
    return sums


def gradient_by_labels(
    features: Float32Or64[Array, "B P D"],
    embeddings: Float32Or64[Array, "C D"],
    largest: Float32Or64[Array, "B C D"],
    mean: Float32Or64[Array, "B C D"],
    scale: Float32Or64[Array, "B C D"],
    exp: Callable[[Float32Or64[Array, "..."]], Float32Or64[Array, "..."]],
) -> Float32Or64[Array, "B P D"]:
    """The sum over the labels of scale w (1 + e (f - mean)), where w = exp(e f - largest).

    Args:
        exp: of numbers that are not positive.
    """

    def of_label(label: Sequence[Array]) -> Array:
        e, largest, mean, scale = (x[..., None, :] for x in label)
        return scale * exp(e * features - largest) * (1 + e * (features - mean))

    def add_labels(gradient: Array, labels: Sequence[Sequence[Array]]) -> tuple[Array, None]:
        return gradient + sum(map(of_label, labels)), None

    by_label = (embeddings[:, None], *(jnp.moveaxis(x, 1, 0) for x in (largest, mean, scale)))
    whole = len(embeddings) // LABELS * LABELS
    lanes = [jax.tree.map(lambda x, i=i: x[i:whole:LABELS], by_label) for i in range(LABELS)]
    rest = [jax.tree.map(lambda x: x[whole:], by_label)]
    # Arrays of their own: sliced out of a common one in the loop, XLA's CPU backend would gather.
    zeros = jnp.zeros_like(features)
    gradient, _ = lax.scan(add_labels, zeros, lax.optimization_barrier(lanes))
    gradient, _ = lax.scan(add_labels, gradient, rest)
    return gradient


def exp_of_negative(x: Float32Or64[Array, "*axes"]) -> Float32Or64[Array, "*axes"]:
    """exp(x) for x <= 0, in float32 to |x| + 3 roundings, and nowhere below 1e-38.

    As 2^n 2^r with a polynomial for 2^r, -1/2 <= r <= 1/2. XLA computes its own exp apart and
    stores it; this it computes where it is used, which on a CPU takes half the time.
    """
    if x.dtype != jnp.float32:
        return jnp.exp(x)
    x = jnp.maximum(x * np.float32(math.log2(math.e)), np.float32(-126))
    n = jnp.round(x)
    power = jnp.full_like(x, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        power = power * (x - n) + coefficient
    exponent = (n.astype(jnp.int32) + 127) << 23
    return power * lax.bitcast_convert_type(exponent, jnp.float32)


def sums_by_label(
    features: Float32Or64[Array, "B P D"],
    embeddings: Float32Or64[Array, "C D"],
    largest: Float32Or64[Array, "B C D"],
) -> Moments:
    """The sums of `sums_by_position`, all positions of one label at a time.

    For accelerators, on which a loop wants few and large steps: C reductions over the features.
    On a CPU it takes half as long again.
    """

    def of_label(label: tuple[Array, Array]) -> Sums:
        e, largest = label
        w = jnp.exp(e[None, None] * features - largest[:, None])
        total, first, second = w, w * features, w * jnp.square(features)
        return jnp.sum(total, axis=1), jnp.sum(first, axis=1), jnp.sum(second, axis=1)

    sums = lax.map(of_label, (embeddings, jnp.moveaxis(largest, 1, 0)))
    total, first, second = (jnp.moveaxis(x, 0, 1) for x in sums)
    return total, first, second

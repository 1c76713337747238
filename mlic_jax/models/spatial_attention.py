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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Moments = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def spatial_attention(features: jax.Array, embeddings: jax.Array) -> jax.Array:
    """Means of the features over the positions that every label attends to, channel by channel.

    Args:
        features: `[B, P, D]`, P >= 1 positions.
        embeddings: `[C, D]`, one a label.

    Returns:
        `[B, C, D]`: sum_p softmax_p(f[b, p, d] e[c, d]) f[b, p, d], in float32 (float64 where the
        features are), as are all sums on the way. Gradients have the dtypes of their arguments.
    """
    return _attend(features, embeddings)[0]


def _attend(features, embeddings):
    """The result, and what the gradients need beside the arguments."""
    f, e, middle, largest = _prepare(features, embeddings)
    sum_up = sums_by_position if jax.default_backend() == "cpu" else sums_by_label
    total, first, second = sum_up(f, e, largest)
    mean = first / total
    return middle + mean, (total, mean, second / total - jnp.square(mean))


def _forward(features, embeddings):
    out, moments = _attend(features, embeddings)
    return out, (features, embeddings, moments)


def _backward(saved, g):
    features, embeddings, (total, mean, variance) = saved
    f, e, _, largest = _prepare(features, embeddings)

    def add_label(gradient, label):
        e, largest, mean, scale = (x[..., None, :] for x in label)
        weighted = scale * jnp.exp(e * f - largest)
        return gradient + weighted * (1 + e * (f - mean)), None

    by_label = (jnp.moveaxis(x, 1, 0) for x in (largest, mean, g / total))
    features_grad, _ = lax.scan(add_label, jnp.zeros_like(f), (e, *by_label))
    embeddings_grad = jnp.sum(g * variance, axis=0)
    return features_grad.astype(features.dtype), embeddings_grad.astype(embeddings.dtype)


spatial_attention.defvjp(_forward, _backward)


def _prepare(features, embeddings):
    """Both in the sums' dtype, f counted from the middle of its range; and the largest e f.

    An offset of f changes no weight, but the variance, a difference of squares, would lose its
    digits to it. The middle, unlike a mean, rounds to the same value wherever XLA computes it.

    Returns:
        f `[B, P, D]`, e `[C, D]`, the middle `[B, 1, D]` and max_p e f_p `[B, C, D]`.
    """
    f, e = (x.astype(np.promote_types(x.dtype, np.float32)) for x in (features, embeddings))
    highest, lowest = jnp.max(f, axis=1, keepdims=True), jnp.min(f, axis=1, keepdims=True)
    middle = (highest + lowest) / 2
    return f - middle, e, middle, e * (jnp.where(e >= 0, highest, lowest) - middle)


def sums_by_position(features: jax.Array, embeddings: jax.Array, largest: jax.Array) -> Moments:
    """Sums over the positions of w, w f and w f^2, where w = exp(e f - largest).

    All labels of one position at a time, which is fastest on a CPU. In two levels, blocks of about
    sqrt(P) positions: one long sum in float32 would round twenty times worse.

    Args:
        features: `[B, P, D]`.
        embeddings: `[C, D]`.
        largest: `[B, C, D]`, max_p e f_p.

    Returns:
        Three arrays `[B, C, D]`.
    """

    def add_position(sums, f):
        w = jnp.exp(embeddings * f - largest)
        return (sums[0] + w, sums[1] + w * f, sums[2] + w * jnp.square(f)), None

    def add_block(sums, block):
        of_block, _ = lax.scan(add_position, zeros, block)
        return jax.tree.map(jnp.add, sums, of_block), None

    zeros = (jnp.zeros_like(largest),) * 3
    positions = jnp.moveaxis(features, 1, 0)[:, :, None]  # [P, B, 1, D]
    size = math.isqrt(len(positions))
    whole = len(positions) // size * size
    blocks = positions[:whole].reshape(-1, size, *positions.shape[1:])
    sums, _ = lax.scan(add_block, zeros, blocks)
    return add_block(sums, positions[whole:])[0]


def sums_by_label(features: jax.Array, embeddings: jax.Array, largest: jax.Array) -> Moments:
    """The sums of `sums_by_position`, all positions of one label at a time.

    For accelerators, on which a loop wants few and large steps: C reductions over the features.
    On a CPU it takes half as long again.
    """

    def of_label(label):
        e, largest = label
        w = jnp.exp(e * features - largest[:, None])
        return tuple(jnp.sum(x, axis=1) for x in (w, w * features, w * jnp.square(features)))

    sums = lax.map(of_label, (embeddings, jnp.moveaxis(largest, 1, 0)))
    return tuple(jnp.moveaxis(x, 0, 1) for x in sums)

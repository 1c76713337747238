"""Colour, flip and normalisation on the device, from a key, inside the jitted step.

In float32, or in float64 where JAX has that enabled, as a reference has.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mlic_jax.models.inputs import InputOptions, _standardise

# Luma weights of ITU-R 601, those of Pillow's conversion to grey.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentOptions(InputOptions):
    """`config.augment`, where every option is explained."""

    flip: bool
    jitter: float


def augment(images: jax.Array, key: jax.Array, options: AugmentOptions) -> jax.Array:
    """Random flip and colour jitter, then normalisation.

    Args:
        images: uint8 `[B, H, W, 3]`.
        key: decides everything random.
        options: what is random, and what images are normalised with.

    Returns:
        float32 `[B, H, W, 3]`.
    """
    flip_key, jitter_key = jax.random.split(key)
    images = jnp.asarray(images, float) / 255
    if options.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if options.jitter:
        images = colour_jitter(images, jitter_key, options.jitter)
    return _standardise(images, options)


def colour_jitter(images: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Changes brightness, contrast and saturation of each image, in an order of its own.

    Each is a blend of the image with something: black, its mean grey, its grey version. So one
    blend a turn serves whichever of the three an image's order has there.

    Args:
        images: float32 `[B, H, W, 3]` in [0, 1].
        key: decides the factors, uniform in 1 +- strength, and the orders.
        strength: in [0, 1].

    Returns:
        As `images`.
    """
    factor_key, order_key = jax.random.split(key)
    batch = images.shape[0]
    factors = jax.random.uniform(factor_key, (3, batch), minval=1 - strength, maxval=1 + strength)
    order = jnp.argsort(jax.random.uniform(order_key, (3, batch)), axis=0)
    for turn in range(3):
        which = order[turn][:, None, None, None]
        grey = jnp.sum(images * jnp.array(LUMA).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
        mean = jnp.mean(grey, axis=(1, 2, 3), keepdims=True)
        other = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, grey))
        factor = factors[turn][:, None, None, None]
        images = jnp.clip(factor * images + (1 - factor) * other, 0, 1)
    return images

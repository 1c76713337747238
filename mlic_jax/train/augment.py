"""Colour, flip, mixing and normalisation on the device, from a key, inside the jitted step.

In float32, or in float64 where JAX has that enabled, as a reference has.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from mlic_jax.models.inputs import InputOptions, _standardise
from mlic_jax.train.randaugment import cutout, each, rand_augment

# Luma weights of ITU-R 601, those of Pillow's conversion to grey.
LUMA = (0.299, 0.587, 0.114)
# Tell the keys of these from that which flip and jitter share; 1 is `step.DROPOUT`.
CUTOUT, RAND_AUGMENT, MIXUP = 2, 3, 4


@dataclass(frozen=True)
class AugmentOptions(InputOptions):
    """`config.augment`, where every option is explained."""

    flip: bool
    jitter: float
    cutout: float
    randaugment: int
    magnitude: float
    mixup: float


def augment(images: jax.Array, key: jax.Array, options: AugmentOptions) -> jax.Array:
    """Cutout and RandAugment, random flip and colour jitter, then normalisation.

    Args:
        images: uint8 `[B, H, W, 3]`.
        key: decides everything random.
        options: what is random, and what images are normalised with.

    Returns:
        float32 `[B, H, W, 3]`.
    """
    if options.cutout:
        square = partial(cutout, share=options.cutout)
        images = each(square, images, jax.random.fold_in(key, CUTOUT))
    if options.randaugment:
        change = partial(rand_augment, count=options.randaugment, magnitude=options.magnitude)
        images = each(change, images, jax.random.fold_in(key, RAND_AUGMENT))
    flip_key, jitter_key = jax.random.split(key)
    images = jnp.asarray(images, float) / 255
    if options.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if options.jitter:
        images = colour_jitter(images, jitter_key, options.jitter)
    return _standardise(images, options)


def augment_views(
    images: jax.Array,
    views: jax.Array,
    index: jax.Array,
    key: jax.Array,
    options: AugmentOptions,
) -> jax.Array:
    """`augment` where everything random of a row follows from the key, its view and its image.

    Args:
        views, index: int32 `[B]`, of every row.
    """

    def of_row(image: jax.Array, view: jax.Array, index: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, view), index)
        return augment(image[None], own, options)[0]

    return jax.vmap(of_row)(images, views, index)


def mixup(
    rows: dict[str, jax.Array], mask: jax.Array, key: jax.Array, alpha: float
) -> dict[str, jax.Array]:
    """Each image and its targets mixed with those of the one before (arXiv 1710.09412).

    A label is known where it is of both. Padding is mixed with nothing, nor nothing with it.

    Args:
        rows: `images` `[B, H, W, 3]`, `targets` float32 and `known` bool `[B, C]`.
        mask: bool `[B]`, False of padding.
        alpha: shares are drawn from Beta(alpha, alpha), one of each row.

    Returns:
        The same rows, mixed.
    """
    other = {name: jnp.roll(values, 1, axis=0) for name, values in rows.items()}
    both = mask & jnp.roll(mask, 1)
    own = jnp.where(both, jax.random.beta(key, alpha, alpha, both.shape), 1.0)

    def mixed(name: str) -> jax.Array:
        share = own.reshape(-1, *[1] * (rows[name].ndim - 1)).astype(rows[name].dtype)
        return share * rows[name] + (1 - share) * other[name]

    known = rows["known"] & (other["known"] | ~both[:, None])
    return {"images": mixed("images"), "targets": mixed("targets"), "known": known}


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

"""uint8 images to what a backbone was trained to see."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mlic_jax.options import Options


@dataclass(frozen=True)
class InputOptions(Options):
    """Of `config.augment`, what every image is normalised with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(images: jax.Array, options: InputOptions) -> jax.Array:
    """uint8 `[B, H, W, 3]` to float32, as the backbone was trained to see it."""
    return _standardise(jnp.asarray(images, float) / 255, options)


def _standardise(images: jax.Array, options: InputOptions) -> jax.Array:
    mean, std = (
        jnp.array(values, images.dtype).reshape(1, 1, 1, 3)
        for values in (options.mean, options.std)
    )
    return (images - mean) / std

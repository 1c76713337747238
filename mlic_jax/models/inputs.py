"""uint8 images to what a backbone was trained to see."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def normalise(images: jax.Array, config: ConfigDict) -> jax.Array:
    """uint8 `[B, H, W, 3]` to float32, as the backbone was trained to see it."""
    return _standardise(jnp.asarray(images, float) / 255, config)


def _standardise(images: jax.Array, config: ConfigDict) -> jax.Array:
    mean, std = (
        jnp.array(values, images.dtype).reshape(1, 1, 1, 3) for values in (config.mean, config.std)
    )
    return (images - mean) / std

"""uint8 images to what a backbone was trained to see."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from mlic_jax.models.arrays import AnyArray


def normalise(images: UInt8[AnyArray, "B H W 3"], config: ConfigDict) -> Float[Array, "B H W 3"]:
    """Photos as the backbone was trained to see them."""
    return _standardise(jnp.asarray(images, float) / 255, config)


def _standardise(images: Float[Array, "B H W 3"], config: ConfigDict) -> Float[Array, "B H W 3"]:
    mean, std = (
        jnp.array(values, images.dtype).reshape(1, 1, 1, 3) for values in (config.mean, config.std)
    )
    return (images - mean) / std

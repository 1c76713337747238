"""uint8 images to what a backbone was trained to see."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mlic_jax.models.arrays import AnyArray
from mlic_jax.options import Options


@dataclass(frozen=True)
class InputOptions(Options):
    """Of `config.augment`, what every image is normalised with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(images: UInt8[AnyArray, "B H W 3"], options: InputOptions) -> Float[Array, "B H W 3"]:
    """Photos as the backbone was trained to see them."""
    return _standardise(jnp.asarray(images, float) / 255, options)


def _standardise(images: Float[Array, "B H W 3"], options: InputOptions) -> Float[Array, "B H W 3"]:
    mean, std = (
        jnp.array(values, images.dtype).reshape(1, 1, 1, 3)
        for values in (options.mean, options.std)
    )
    return (images - mean) / std

"""The mean features of whole photos: all that a probe needs of a backbone, computed once."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Float32

from mlic_jax.data.records import Split
from mlic_jax.models.heads.pooled import summarise
from mlic_jax.runtime import devices
from mlic_jax.scores.options import ScoreOptions
from mlic_jax.scores.stored import open_plain_store


class MeanFeatures(nn.Module):
    """A backbone, of whose last map the mean is taken."""

    features: nn.Module

    def look(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B F"]]:
        """`mean`, of normalised images."""
        return {"mean": summarise(self.features(images)[-1])["mean"]}


def mean_features(
    model: nn.Module, variables: Mapping[str, Any], split: Split, options: ScoreOptions
) -> Float32[np.ndarray, "N F"]:
    """What the backbone of a model says of the photos of a split, as evaluation sees them.

    Kept beside the prepared set, see `Store`: another time they are read.

    Raises:
        UsageError, Failure: see `Store`.
    """
    once = dataclasses.replace(options, eval=dataclasses.replace(options.eval, flip=False))
    backbone = MeanFeatures(model.features)
    store = open_plain_store(backbone, variables, split, once, devices.create_mesh())
    found = store.read(("mean",), np.zeros(len(split), int), np.arange(len(split)))["mean"]
    return found.astype(np.float32)

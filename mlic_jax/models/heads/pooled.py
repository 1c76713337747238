"""The baseline: a backbone, global pooling and a linear classifier. MCAR shares the last two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mlic_jax.models.precision import at_least_float32


def global_pool(features: jax.Array, pooling: str) -> jax.Array:
    """Pools `[B, h, w, F]` over all positions to float32 `[B, F]`, by a key of `POOLINGS`."""
    return POOLINGS[pooling](at_least_float32(features))


def _average(features: jax.Array) -> jax.Array:
    return jnp.mean(features, axis=(1, 2))


def _maximum(features: jax.Array) -> jax.Array:
    return jnp.max(features, axis=(1, 2))


POOLINGS: dict[str, Callable] = {
    "avg": _average,
    "max": _maximum,
    "gwp": lambda features: (_maximum(features) + _average(features)) / 2,
}


class PointwiseClassifier(nn.Module):
    """One linear classifier for pooled features and for every position of a map alike."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[..., F]` to float32 logits `[..., C]`."""
        # Uniform in +-1/sqrt(F), kernel and bias: how PyTorch starts a convolution.
        inputs = features.shape[-1]
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", uniform, (inputs, self.num_classes))
        bias = self.param(
            "bias",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1) * inputs**-0.5,
            (self.num_classes,),
        )
        logits = jnp.dot(at_least_float32(features), kernel, precision=lax.Precision.HIGHEST)
        return logits + jnp.broadcast_to(bias, logits.shape)


class Pooled(nn.Module):
    """The baseline that every other model has to beat.

    Attributes:
        features: the backbone, of which the last map is used.
        num_classes: C.
        pooling: a key of `POOLINGS`.
    """

    features: nn.Module
    num_classes: int
    pooling: str

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Scores images.

        Args:
            images: float32 `[B, S, S, 3]`, normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: bool `[B]`, False for padding, which moves no batch statistics; or the groups
                of the rows, see `ConvBatchNorm`.

        Returns:
            `logits`, float32 `[B, C]`.
        """
        maps = self.features(images, train, mask)[-1]
        classifier = PointwiseClassifier(self.num_classes, name="convclass")
        return {"logits": classifier(global_pool(maps, self.pooling))}

"""The baseline: a backbone, global pooling and a linear classifier. MCAR shares the last two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Float32Or64, Outputs, RowMask
from mlic_jax.models.precision import at_least_float32


def global_pool(features: Float[Array, "B h w F"], pooling: str) -> Float32Or64[Array, "B F"]:
    """Pools features over all positions, by a key of `POOLINGS`."""
    return POOLINGS[pooling](at_least_float32(features))


def _average(features: Array) -> Array:
    return jnp.mean(features, axis=(1, 2))


def _maximum(features: Array) -> Array:
    return jnp.max(features, axis=(1, 2))


POOLINGS: dict[str, Callable[[Float[Array, "B h w F"]], Float[Array, "B F"]]] = {
    "avg": _average,
    "max": _maximum,
    "gwp": lambda features: (_maximum(features) + _average(features)) / 2,
}


class PointwiseClassifier(nn.Module):
    """One linear classifier for pooled features and for every position of a map alike."""

    num_classes: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "*batch F"]
    ) -> Float32Or64[Array, "*batch {self.num_classes}"]:
        """The logits of every vector of features."""
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
        self, images: Float[Array, "B H W 3"], train: bool = False, mask: RowMask | None = None
    ) -> Outputs:
        """Scores images.

        Args:
            images: normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: padding moves no batch statistics, see `ConvBatchNorm`.

        Returns:
            `logits`, float32 `[B, C]`.
        """
        maps = self.features(images, train, mask)[-1]
        classifier = PointwiseClassifier(self.num_classes, name="convclass")
        return {"logits": classifier(global_pool(maps, self.pooling))}

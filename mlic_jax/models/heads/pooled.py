"""The baseline: a backbone, global pooling and a linear classifier. MCAR shares the last two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mlic_jax.models.precision import at_least_float32


def summarise(maps: jax.Array) -> dict[str, jax.Array]:
    """The `mean` and the `maximum` over all positions of `[..., h, w, F]`, float32 `[..., F]`.

    All that any pooling needs. Inside `jax.jit` the one that is not used is not computed.
    """
    maps = at_least_float32(maps)
    return {"mean": jnp.mean(maps, axis=(-3, -2)), "maximum": jnp.max(maps, axis=(-3, -2))}


def global_pool(summary: dict[str, jax.Array], pooling: str) -> jax.Array:
    """Float32 `[..., F]` from what `summarise` gave, by a key of `POOLINGS`."""
    return POOLINGS[pooling](summary)


POOLINGS: dict[str, Callable[[dict[str, jax.Array]], jax.Array]] = {
    "avg": lambda summary: summary["mean"],
    "max": lambda summary: summary["maximum"],
    "gwp": lambda summary: (summary["maximum"] + summary["mean"]) / 2,
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

    def setup(self):
        self.convclass = PointwiseClassifier(self.num_classes)

    def __call__(
        self, images: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Scores images: `look`, then `score`.

        Args:
            images: float32 `[B, S, S, 3]`, normalised.
            train: batch statistics in batch normalisation; needs `mutable=["batch_stats"]`.
            mask: bool `[B]`, False for padding, which moves no batch statistics; or the groups
                of the rows, see `ConvBatchNorm`.

        Returns:
            `logits`, float32 `[B, C]`.
        """
        return self.score(self.look(images, train, mask))

    def look(
        self, images: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """All that the head needs of images, see `summarise`; arguments as of `__call__`."""
        return summarise(self.features(images, train, mask)[-1])

    def score(self, seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What `__call__` returns, from what `look` does."""
        return {"logits": self.convclass(global_pool(seen, self.pooling))}

"""A convolution and its batch normalisation, the one building block of every backbone."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mlic_jax.models.convolution import convolve

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # the share of the new statistics, as PyTorch counts it

# Normal with variance 2 / fan_out, the usual start of these networks (He et al. 2015).
kernel_initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvBatchNorm(nn.Module):
    """Convolution without bias, then batch normalisation, then an optional activation.

    In training the batch's statistics normalise (biased variance) and the running ones follow with
    the unbiased variance, as in PyTorch. At inference the running statistics are folded into the
    kernel, one pass over the activations less.
    """

    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    scale_initializer: Callable = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, H, W, F]` to `[B, H', W', features]`.

        Args:
            mask: bool `[B]`, False for padding, which moves no statistics; None: all are real.
        """
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param(
            "kernel", kernel_initializer, (self.size, self.size, inputs, self.features)
        )
        scale = self.param("scale", self.scale_initializer, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,))
        if train:
            x = convolve(x, kernel, self.stride, depthwise=self.depthwise, train=True)
            batch_mean, batch_var, count = batch_statistics(x, mask)
            if not self.is_initializing():
                unbiased = batch_var * count / jnp.maximum(count - 1, 1)
                mean.value += BATCH_NORM_MOMENTUM * (batch_mean - mean.value)
                var.value += BATCH_NORM_MOMENTUM * (unbiased - var.value)
            gain = scale * lax.rsqrt(batch_var + BATCH_NORM_EPSILON)
            x = x * gain + (bias - batch_mean * gain)
        else:
            gain = scale * lax.rsqrt(var.value + BATCH_NORM_EPSILON)
            x = convolve(x, kernel * gain, self.stride, depthwise=self.depthwise)
            x = x + (bias - mean.value * gain)
        return x if self.activation is None else self.activation(x)


def batch_statistics(
    x: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance `[F]` of the real rows of `[B, H, W, F]`, and their values' count.

    Two passes in float32: the difference of two large means would lose the small variances.
    """
    x = x.astype(jnp.float32)
    if mask is None:
        weight = jnp.ones((x.shape[0], 1, 1, 1), jnp.float32)
    else:
        weight = mask.astype(jnp.float32)[:, None, None, None]
    count = jnp.maximum(jnp.sum(weight), 1.0) * (x.shape[1] * x.shape[2])
    mean = jnp.sum(x * weight, axis=(0, 1, 2)) / count
    var = jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1, 2)) / count
    return mean, var, count

"""A convolution and its batch normalisation, the one building block of every backbone.

And how the blocks of a backbone follow each other, with or without recomputation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mlic_jax.errors import UsageError
from mlic_jax.models.convolution import convolve
from mlic_jax.models.precision import at_least_float32

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # the share of the new statistics, as PyTorch counts it

# What the backward pass computes again instead of keeping it: nothing, or what lies inside every
# stage or every block.
REMATS = ("none", "stage", "block")

# Normal with variance 2 / fan_out, the usual start of these networks (He et al. 2015).
kernel_initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvBatchNorm(nn.Module):
    """Convolution without bias, then batch normalisation, then an optional activation.

    In training the batch's statistics normalise (biased variance) and the running ones follow with
    the unbiased variance, as in PyTorch. At inference the running ones normalise.

    Attributes:
        dtype: of the convolution and of what it returns; parameters and statistics are float32, or
            float64 where this is.
        bn_groups: parts of the batch, in its order, that are normalised each by itself, as replicas
            of PyTorch do. The running statistics follow the first, as theirs follow those of the
            first replica.
    """

    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    scale_initializer: Callable = nn.initializers.ones
    dtype: Any = jnp.float32
    bn_groups: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[B, H, W, F]` to `[B, H', W', features]` of `dtype`.

        Args:
            mask: bool `[B]`, False for padding, which moves no statistics; None: all are real.

        Raises:
            UsageError: the batch does not divide into `bn_groups`.
        """
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param(
            "kernel", kernel_initializer, (self.size, self.size, inputs, self.features)
        )
        scale = self.param("scale", self.scale_initializer, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = convolve(x, kernel, self.stride, depthwise=self.depthwise)
        if train:
            used_mean, used_var, count = batch_statistics(x, mask, self.bn_groups)
            if not self.is_initializing():
                unbiased = used_var[0] * count[0] / jnp.maximum(count[0] - 1, 1)
                mean.value += BATCH_NORM_MOMENTUM * (used_mean[0] - mean.value)
                var.value += BATCH_NORM_MOMENTUM * (unbiased - var.value)
        else:
            used_mean, used_var = mean.value[None], var.value[None]
        gain = scale * lax.rsqrt(used_var + BATCH_NORM_EPSILON)
        x = scale_and_shift(x, gain, bias - used_mean * gain)
        x = x.astype(self.dtype)
        return x if self.activation is None else self.activation(x)


def batch_statistics(
    x: jax.Array, mask: jax.Array | None, groups: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of the real rows of every group of the batch `[B, H, W, F]`.

    Two passes, in float32 at least: the difference of two large means would lose small variances.

    Returns:
        Mean and variance `[G, F]`, and the number of values `[G]` that each is of.
    """
    if x.shape[0] % groups:
        raise UsageError(
            f"model.bn_groups is {groups}, which does not divide a batch of {x.shape[0]}"
        )
    x = in_groups(at_least_float32(x), groups)
    if mask is None:
        weight = jnp.ones(x.shape[:2], x.dtype)
    else:
        weight = mask.astype(x.dtype).reshape(x.shape[:2])
    count = jnp.maximum(jnp.sum(weight, axis=1), 1.0) * (x.shape[2] * x.shape[3])
    weight, places = weight[..., None, None, None], (1, 2, 3)
    mean = jnp.sum(x * weight, axis=places) / count[:, None]
    centred = x - mean[:, None, None, None]
    var = jnp.sum(jnp.square(centred) * weight, axis=places) / count[:, None]
    return mean, var, count


def scale_and_shift(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """Scales and shifts `[B, H, W, F]`, every group of the batch by its row of `[G, F]`."""
    grouped = in_groups(at_least_float32(x), len(gain))
    return (grouped * gain[:, None, None, None] + shift[:, None, None, None]).reshape(x.shape)


def in_groups(x: jax.Array, groups: int) -> jax.Array:
    """The batch `[B, ...]` as `[G, B / G, ...]`."""
    return x.reshape(groups, -1, *x.shape[1:])


def run_in_order(
    backbone: nn.Module,
    blocks: Sequence[Callable[..., nn.Module]],
    remat: str,
    x: jax.Array,
    train: bool,
    mask: jax.Array | None,
) -> jax.Array:
    """Runs the blocks of one stage, and recomputes inside it what `remat`, of `REMATS`, says.

    Args:
        backbone: whose submodules the blocks are.
        blocks: functions that make them, with their names.
        x: `[B, H, W, F]`.
    """

    def run(backbone: nn.Module, x: jax.Array, blocks: Sequence[Callable]) -> jax.Array:
        for block in blocks:
            x = block(parent=backbone)(x, train, mask)
        return x

    parts = {"none": [], "stage": [blocks], "block": [[block] for block in blocks]}[remat]
    for part in parts:
        x = nn.remat(partial(run, blocks=part))(backbone, x)
    return x if parts else run(backbone, x, blocks)

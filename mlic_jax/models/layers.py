"""The layers that several models are made of.

A convolution and its batch normalisation; what there is in its place where nothing depends on a
batch, a normalisation of every position by itself; how the blocks of a backbone follow each other,
with or without recomputation, and how they are left out; and how a linear layer starts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from mlic_jax.models.arrays import Float32Or64, RowMask
from mlic_jax.models.ops.convolution import convolve
from mlic_jax.models.precision import at_least_float32

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # the share of the new statistics, as PyTorch counts it

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
        same: TensorFlow's padding, see `convolve`.
        epsilon, momentum: of the normalisation; the momentum is the share of the new statistics.
        positive: the scale counts by its magnitude, plus epsilon: in-place activated batch
            normalisation (Rota Bulo et al. 2018).
        axis: of the mesh, inside `jax.shard_map`, over whose devices the batch is spread; None: it
            is whole here.
    """

    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None
    scale_initializer: Callable[..., Float[Array, "..."]] = nn.initializers.ones
    dtype: Any = jnp.float32
    bn_groups: int = 1
    same: bool = False
    epsilon: float = BATCH_NORM_EPSILON
    momentum: float = BATCH_NORM_MOMENTUM
    positive: bool = False
    axis: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W F"], train: bool = False, mask: RowMask | None = None
    ) -> Float[Array, "B -(-H//{self.stride}) -(-W//{self.stride}) {self.features}"]:
        """Maps x to new features of `dtype`, at every `stride`-th position.

        Args:
            mask: padding moves no statistics; None: all rows are real. Where the batch is spread,
                it must be what `deal_rows` made.
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
        x = convolve(x, kernel, self.stride, depthwise=self.depthwise, same=self.same)
        used_mean, used_var, members = mean.value[None], var.value[None], None
        if train:
            members = members_of_groups(mask, x.shape[0], self.bn_groups)
            running = mean.value, var.value
            used_mean, used_var, count = batch_statistics(x, members, *running, self.axis)
            if not self.is_initializing():
                # The first group is empty only where nothing is real; then nothing moves.
                unbiased = jnp.where(count[0] > 0, count[0] / jnp.maximum(count[0] - 1, 1), 1)
                mean.value += self.momentum * (used_mean[0] - mean.value)
                var.value += self.momentum * (used_var[0] * unbiased - var.value)
        scale = jnp.abs(scale) + self.epsilon if self.positive else scale
        gain = scale[None] * lax.rsqrt(used_var + self.epsilon)
        x = scale_and_shift(x, gain, bias[None] - used_mean * gain, members).astype(self.dtype)
        return x if self.activation is None else self.activation(x)


def deal_rows(mask: Bool[Array, " B"], groups: int) -> Int32[Array, " B"]:
    """The group of every row of a batch, as PyTorch deals them out to its replicas.

    All groups have ceil(R / K) of the R real rows, in their order, but the last ones, which have
    what is left: perhaps nothing.

    Args:
        mask: False for padding.
        groups: how many there are, K.

    Returns:
        -1 for padding.
    """
    place = jnp.cumsum(mask, dtype=jnp.int32) - 1
    share = jnp.maximum(-(-jnp.sum(mask, dtype=jnp.int32) // groups), 1)
    return jnp.where(mask, place // share, -1)


def members_of_groups(
    mask: RowMask | None, rows: int, groups: int
) -> Bool[Array, "{groups} {rows}"]:
    """Which rows every group has; `mask` as `ConvBatchNorm` takes it."""
    if mask is None:
        mask = jnp.ones(rows, bool)
    if mask.dtype == bool:
        mask = deal_rows(mask, groups)
    return mask[None] == jnp.arange(groups, dtype=mask.dtype)[:, None]


def batch_statistics(
    x: Float[Array, "B H W F"],
    members: Bool[Array, "K B"],
    running_mean: Float32Or64[Array, " F"],
    running_var: Float32Or64[Array, " F"],
    axis: str | None = None,
) -> tuple[Float32Or64[Array, "K F"], Float32Or64[Array, "K F"], Float32Or64[Array, " K"]]:
    """Mean and biased variance of the rows of every group.

    In one pass, in float32 at least: sums and sums of squares about the running mean, for one array
    is then all that devices exchange. Their difference loses the digits of the square of how far
    the mean is from the running one, in standard deviations; so near to it, none.

    Args:
        x: the rows that are here.
        members: which of them every group has.
        axis: of the devices that have the other rows, if any.

    Returns:
        Mean and variance, of a group without rows the running ones; and the number of values that
        each is of.
    """
    x = at_least_float32(x) - running_mean[None, None, None]
    places = jnp.full((x.shape[0], 1), x.shape[1] * x.shape[2], x.dtype)
    # Of every row, then of its group: what padding holds is selected away, whatever it is.
    of_rows = [jnp.sum(x, axis=(1, 2)), jnp.sum(jnp.square(x), axis=(1, 2)), places]
    sums = jnp.where(members[..., None], jnp.concatenate(of_rows, axis=1), 0).sum(axis=1)
    if axis is not None:
        sums = lax.psum(sums, axis)
    count = sums[:, -1]
    first, second = jnp.split(sums[:, :-1] / jnp.maximum(count, 1)[:, None], 2, axis=1)
    is_empty = (count == 0)[:, None]
    var = jnp.maximum(second - jnp.square(first), 0)
    return running_mean[None] + first, jnp.where(is_empty, running_var[None], var), count


def scale_and_shift(
    x: Float[Array, "B H W F"],
    gain: Float32Or64[Array, "K F"],
    shift: Float32Or64[Array, "K F"],
    members: Bool[Array, "K B"] | None,
) -> Float32Or64[Array, "B H W F"]:
    """Scales and shifts every row by those of its group.

    Args:
        members: which rows every group has; of one group alone they do not matter.
    """
    if len(gain) > 1 and members is not None:
        of_group = (jnp.where(members[..., None], y[:, None], 0) for y in (gain, shift))
        gain, shift = (jnp.sum(y, axis=0) for y in of_group)
    return at_least_float32(x) * gain[:, None, None] + shift[:, None, None]


def run_in_order(
    backbone: nn.Module,
    blocks: Sequence[Callable[..., nn.Module]],
    remat: str,
    x: Float[Array, "B *positions F"],
    train: bool,
    mask: RowMask | None,
) -> Float[Array, "B *others G"]:
    """Runs the blocks of one stage, and recomputes inside it what `remat`, of `names.REMATS`, says.

    Args:
        backbone: whose submodules the blocks are.
        blocks: functions that make them, with their names.
    """

    def run(backbone: nn.Module, x: Array, blocks: Sequence[Callable[..., nn.Module]]) -> Array:
        for block in blocks:
            x = block(parent=backbone)(x, train, mask)
        return x

    in_parts: dict[str, list[Sequence[Callable[..., nn.Module]]]] = {
        "none": [],
        "stage": [blocks],
        "block": [[block] for block in blocks],
    }
    parts = in_parts[remat]
    for part in parts:
        x = nn.remat(partial(run, blocks=part))(backbone, x)
    return x if parts else run(backbone, x, blocks)


class LayerNorm(nn.Module):
    """Normalises every position by itself, over its features; its sums are float32 or wider.

    Attributes:
        dtype: of what it returns; parameters are float32, or float64 where this is.
    """

    dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
        x = at_least_float32(x)
        x -= jnp.mean(x, axis=-1, keepdims=True)
        var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * lax.rsqrt(var + self.epsilon) * scale + bias).astype(self.dtype)


class SqueezeExcite(nn.Module):
    """Features by factors in (0, 1) that depend on their means over the positions (Hu et al. 2018).

    Attributes:
        squeezed: features of the layer between.
        activation: after it.
        dtype: of the products and of what it returns; the means and the factors are float32 or
            wider.
    """

    squeezed: int
    activation: Callable[[Float[Array, "..."]], Float[Array, "..."]] = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"]) -> Float[Array, "B H W F"]:
        means = jnp.mean(at_least_float32(x), axis=(1, 2)).astype(self.dtype)
        hidden = self.activation(Dense(self.squeezed, self.dtype, name="reduce")(means))
        factors = Dense(x.shape[-1], self.dtype, name="expand")(hidden)
        factors = nn.sigmoid(at_least_float32(factors)).astype(self.dtype)
        return x.astype(self.dtype) * factors[:, None, None]


class Dense(nn.Module):
    """A linear layer with a bias, of weights that start as those of a 1x1 convolution."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch F"]) -> Float[Array, "*batch {self.features}"]:
        kernel = self.param("kernel", kernel_initializer, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape).astype(self.dtype)


def drop_path(module: nn.Module, x: Float[Array, "*axes"], rate: float) -> Float[Array, "*axes"]:
    """Stochastic depth (Huang et al. 2016): rows of a residual branch are 0, others are scaled up.

    Args:
        module: in training it has a key `dropout`; without one nothing is left out.
        rate: the share that is, in [0, 1).
    """
    if not rate or not module.has_rng("dropout"):
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    is_kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(is_kept, x / (1 - rate), 0)


class PerLabel(nn.Module):
    """One linear score for every label, of weights and features of its own."""

    @nn.compact
    def __call__(self, x: Float32Or64[Array, "B C F"]) -> Float32Or64[Array, "B C"]:
        start = uniform(x.shape[-1])
        kernel = self.param("kernel", start, x.shape[1:])
        bias = self.param("bias", start, x.shape[1:2])
        return jnp.sum(x * kernel[None], axis=-1) + bias[None]


def uniform(inputs: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(F), F = `inputs`: how PyTorch starts a linear layer, kernel and bias."""
    bound = inputs**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

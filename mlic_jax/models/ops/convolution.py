"""2-D convolution, NHWC x HWIO, formulated for the platform it runs on.

Accelerators get `lax.conv_general_dilated`, and so do CPUs in programs of `compilation.jit`, but
for what XLA's CPU backend is several times slower on than on the same sums written another way:

* a depthwise convolution is a sum of strided slices, each times its weight;
* a 1x1 convolution is a matrix product.

A trace holds both, and lowering takes that of its platform. Each has gradients of its own, since
the derived ones would be slow again, and keep what every branch needs. All formulations compute the
same sums; `tests/models/ops/test_convolution.py` holds them against the plain one, values and
gradients.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.precision import at_least_float32

# What `convolve` takes, x and a kernel, and their gradients.
Gradients = tuple[Float[Array, "B H W F"], Float[Array, "k k I G"]]


# Traced once for all layers of the same shapes, of which a deep network has dozens.
@partial(jax.jit, static_argnames=("stride", "depthwise", "same"), inline=True)
def convolve(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    stride: int = 1,
    depthwise: bool = False,
    same: bool = False,
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """Convolves with symmetric zero padding of (k - 1) // 2, as PyTorch's layers of these networks.

    Args:
        kernel: of I = F inputs, or, where depthwise, of I = 1 and G = F; k odd.
        stride: of both axes.
        depthwise: every channel is convolved alone.
        same: with TensorFlow's padding instead, see `pads`: another one where the stride is not 1.

    Returns:
        Of the dtype of `x`.
    """
    if depthwise or kernel.shape[0] == 1:
        return _of_platform(x, kernel, stride, depthwise, same)
    return plain(x, kernel, stride, same=same)


def pads(length: int, size: int, stride: int, same: bool) -> tuple[int, int]:
    """The zeros before and after an axis.

    As many on both sides, or, `same`, no more than ceil(length / stride) windows need, of an odd
    number one more after than before.
    """
    if not same:
        return (size - 1) // 2, (size - 1) // 2
    missing = max((-(-length // stride) - 1) * stride + size - length, 0)
    return missing // 2, missing - missing // 2


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _of_platform(x, kernel, stride, depthwise, same):
    depthwise_on_cpu = partial(depthwise_slices, same=same)
    on_cpu = partial(depthwise_on_cpu if depthwise else pointwise_dot, stride=stride)
    default = partial(plain, stride=stride, depthwise=depthwise, same=same)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


def _forward(x, kernel, stride, depthwise, same):
    return _of_platform(x, kernel, stride, depthwise, same), (x, kernel)


def _backward(stride, depthwise, same, saved, g):
    depthwise_on_cpu = partial(depthwise_gradients, same=same)
    on_cpu = partial(depthwise_on_cpu if depthwise else pointwise_gradients, stride=stride)
    default = partial(plain_gradients, stride=stride, depthwise=depthwise, same=same)
    return lax.platform_dependent(*saved, g, cpu=on_cpu, default=default)


_of_platform.defvjp(_forward, _backward)


def plain(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    stride: int = 1,
    depthwise: bool = False,
    same: bool = False,
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """The convolution as XLA has it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        _pads_of(x, kernel, stride, same),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def plain_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"],
    stride: int = 1,
    depthwise: bool = False,
    same: bool = False,
) -> Gradients:
    """The gradients of `plain` as JAX derives them, for the cotangent `g` of its result."""
    convolved = partial(plain, stride=stride, depthwise=depthwise, same=same)
    of_x = jax.linear_transpose(lambda x: convolved(x, kernel), x)
    of_kernel = jax.linear_transpose(lambda kernel: convolved(x, kernel), kernel)
    return *of_x(g), *of_kernel(g)


def pointwise_dot(
    x: Float[Array, "B H W F"], kernel: Float[Array, "1 1 F G"], stride: int = 1
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """A 1x1 convolution as a matrix product over the (strided) positions."""
    return x[:, ::stride, ::stride] @ kernel[0, 0]


def pointwise_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "1 1 F G"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"],
    stride: int = 1,
) -> Gradients:
    """Matrix products as well."""
    # The barrier keeps XLA from fusing what made x into the product, which would undo its speed.
    used = lax.optimization_barrier(x[:, ::stride, ::stride]).reshape(-1, x.shape[-1])
    kernel_grad = (used.T @ g.reshape(-1, g.shape[-1]))[None, None]
    return _dilate(g @ kernel[0, 0].T, stride, x.shape), kernel_grad


def depthwise_slices(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k 1 F"],
    stride: int = 1,
    same: bool = False,
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) F"]:
    """A depthwise convolution as a sum of strided slices of the padded input."""
    return _sum_of_slices(x, kernel, stride, _pads_of(x, kernel, stride, same))


def _pads_of(x: Array, kernel: Array, stride: int, same: bool) -> list[tuple[int, int]]:
    return [pads(length, kernel.shape[0], stride, same) for length in x.shape[1:3]]


def _sum_of_slices(x: Array, kernel: Array, stride: int, pads: Sequence[tuple[int, int]]) -> Array:
    # The barrier keeps the middle slice from being what was padded, to be computed anew.
    padded = lax.optimization_barrier(_pad(x, pads))
    slices = _strided_slices(padded, kernel.shape[0], stride, x.shape[1:3])
    return sum(part * kernel[i, j, None, None] for (i, j), part in slices)


def depthwise_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k 1 F"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) F"],
    stride: int = 1,
    same: bool = False,
) -> Gradients:
    """That of x is g convolved with the flipped kernel, that of the kernel a sum over rows."""
    size, padding = kernel.shape[0], _pads_of(x, kernel, stride, same)
    # A window of the flipped kernel begins as far before a position as one of the kernel ends
    # after it, and what was padded gets no gradient.
    flipped = [(size - 1 - before, before) for before, _ in padding]
    x_grad = _sum_of_slices(_dilate(g, stride, x.shape), kernel[::-1, ::-1], 1, flipped)
    return x_grad, _depthwise_kernel_gradient(_pad(x, padding), g, size, stride)[:, :, None]


def _depthwise_kernel_gradient(padded: Array, g: Array, size: int, stride: int) -> Array:
    """`[k, k, F]`, from sums over rows (of float32 or wider): a row and its sums stay cached."""
    batch, rows, columns, channels = g.shape
    padded = lax.optimization_barrier(padded)
    # At stride 1 a row is one long vector, for few channels alone would fill no register.
    row_shape = (columns * channels,) if stride == 1 else (columns, channels)

    def shifted(inputs, j):
        """`[k, *row_shape]`: what column j of the kernel is multiplied with."""
        if stride == 1:
            return inputs.reshape(size, -1)[:, j * channels : (j + columns) * channels]
        return inputs[:, j : j + stride * (columns - 1) + 1 : stride]

    def add_row(index, sums):
        image, row = index // rows, index % rows
        cotangent = lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, columns, channels))
        cotangent = cotangent.reshape(1, *row_shape)
        corner = (image, row * stride, 0, 0)
        inputs = lax.dynamic_slice(padded, corner, (1, size, *padded.shape[2:]))[0]
        products = (shifted(inputs, j) * cotangent for j in range(size))
        return [total + at_least_float32(p) for total, p in zip(sums, products, strict=True)]

    zeros = at_least_float32(jnp.zeros((size, *row_shape), g.dtype))
    sums = lax.fori_loop(0, batch * rows, add_row, [zeros] * size)
    by_column = (jnp.sum(total.reshape(size, columns, channels), axis=1) for total in sums)
    return jnp.stack(list(by_column), axis=1).astype(g.dtype)


def _pad(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _strided_slices(padded: Array, size: int, stride: int, shape: tuple[int, int]):
    """For every tap (i, j) of the kernel, the inputs it is multiplied with at all positions."""
    height, width = shape
    for i in range(size):
        for j in range(size):
            yield (i, j), padded[:, i : i + height : stride, j : j + width : stride]


def _dilate(g: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """Puts a cotangent of the strided grid back on the grid of `shape`, zeros between."""
    if stride == 1:
        return g
    zero = jnp.zeros((), g.dtype)
    tails = [
        full - (stride * (few - 1) + 1) for few, full in zip(g.shape[1:3], shape[1:3], strict=True)
    ]
    config = ((0, 0, 0), (0, tails[0], stride - 1), (0, tails[1], stride - 1), (0, 0, 0))
    return lax.pad(g, zero, config)

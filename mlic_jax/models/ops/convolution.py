"""2-D convolution, NHWC x HWIO, formulated for the platform it runs on.

Accelerators get `lax.conv_general_dilated`. XLA's CPU backend is several times slower on some of
those than on the same sums written another way, so there:

* a depthwise convolution is a sum of strided slices, each times its weight, and so is one of few
  inputs to an output;
* a 1x1 convolution is a matrix product;
* a 3x3 convolution of many channels takes fewer products (`winograd.py`);
* the gradient of any other kernel is a convolution along one axis.

A trace holds both, and lowering takes that of its platform. Each has gradients of its own, since
the derived ones would be slow again, and keep what every branch needs. All formulations compute the
same sums; `tests/models/test_convolution.py` holds them against the plain one, values and
gradients.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mlic_jax.models.ops.winograd import winograd, winograd_gradients
from mlic_jax.models.precision import at_least_float32

# Up to so many inputs of an output, summing their products one after the other is fastest.
FEW_INPUTS = 27
# From so many channels on, fewer products are worth the additions around them.
MANY_CHANNELS = 128

# What `convolve` takes, x and a kernel, and their gradients.
Gradients = tuple[Float[Array, "B H W F"], Float[Array, "k k I G"]]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    stride: int = 1,
    depthwise: bool = False,
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """Convolves with symmetric zero padding of (k - 1) // 2, as PyTorch's layers of these networks.

    Args:
        kernel: of I = F inputs, or, where depthwise, of I = 1 and G = F; k odd.
        stride: of both axes.
        depthwise: every channel is convolved alone.

    Returns:
        Of the dtype of `x`.
    """
    on_cpu, _ = cpu_formulation(x, kernel, stride, depthwise)
    default = partial(plain, stride=stride, depthwise=depthwise)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


def _forward(x, kernel, stride, depthwise):
    on_cpu, _ = cpu_formulation(x, kernel, stride, depthwise)

    def kept(x, kernel):
        # The barrier keeps every use of the result (statistics, normalised values, their gradients)
        # from adding it up anew. An inference has a single one, which should be fused with it.
        return lax.optimization_barrier(on_cpu(x, kernel))

    default = partial(plain, stride=stride, depthwise=depthwise)
    cpu = kept if on_cpu is winograd else on_cpu
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default), (x, kernel)


def _backward(stride, depthwise, saved, g):
    _, on_cpu = cpu_formulation(*saved, stride, depthwise)
    default = partial(plain_gradients, stride=stride, depthwise=depthwise)
    return lax.platform_dependent(*saved, g, cpu=on_cpu, default=default)


convolve.defvjp(_forward, _backward)


def cpu_formulation(
    x: Float[Array, "B H W F"], kernel: Float[Array, "k k I G"], stride: int, depthwise: bool
) -> tuple[Callable[..., Float[Array, "..."]], Callable[..., Gradients]]:
    """What is fastest on a CPU for such arguments, as `convolve` has them.

    Returns:
        (x, kernel) -> the convolution, and (x, kernel, cotangent) -> its gradients.
    """
    if depthwise:
        forward, gradients = depthwise_slices, depthwise_gradients
    elif kernel.shape[0] == 1:
        forward, gradients = pointwise_dot, pointwise_gradients
    else:
        many = min(kernel.shape[2:]) >= MANY_CHANNELS
        if many and kernel.shape[0] == 3 and stride == 1 and x.dtype == jnp.float32:
            return winograd, winograd_gradients
        forward, gradients = dense, dense_gradients
    return partial(forward, stride=stride), partial(gradients, stride=stride)


def plain(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    stride: int = 1,
    depthwise: bool = False,
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """The convolution as XLA has it."""
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def plain_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k I G"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"],
    stride: int = 1,
    depthwise: bool = False,
) -> Gradients:
    """The gradients of `plain` as JAX derives them, for the cotangent `g` of its result."""
    of_x = jax.linear_transpose(lambda x: plain(x, kernel, stride, depthwise), x)
    of_kernel = jax.linear_transpose(lambda kernel: plain(x, kernel, stride, depthwise), kernel)
    return *of_x(g), *of_kernel(g)


def dense(
    x: Float[Array, "B H W F"], kernel: Float[Array, "k k F G"], stride: int = 1
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"]:
    """The plain convolution; of few inputs to an output the sum of their products.

    At the first layer of MobileNetV2 XLA's CPU backend makes one loop of that.
    """
    size, channels = kernel.shape[0], kernel.shape[2]
    if size * size * channels > FEW_INPUTS:
        return plain(x, kernel, stride)
    slices = _strided_slices(_pad(x, (size - 1) // 2), size, stride, x.shape)
    return sum(
        part[..., c : c + 1] * kernel[i, j, None, None, c : c + 1]
        for (i, j), part in slices
        for c in range(channels)
    )


def dense_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k F G"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) G"],
    stride: int = 1,
) -> Gradients:
    """That of the kernel is a convolution along one axis."""
    of_x = jax.linear_transpose(lambda x: plain(x, kernel, stride), x)
    return *of_x(g), _dense_kernel_gradient(x, g, kernel.shape[0], stride)


def _dense_kernel_gradient(x: Array, g: Array, size: int, stride: int) -> Array:
    """`[k, k, F, G]`: at every shift of its rows, x times g summed over all positions.

    Along the rows that is a convolution, whose channels are the columns of all images and whose
    kernel is the cotangent; each shift of the columns is an image of its batch. XLA's CPU backend
    packs so many channels several times faster than the few images which its own gradient takes
    for them.
    """
    (batch, rows, columns), pad = g.shape[:3], (size - 1) // 2
    rows_read, columns_read = (stride * (n - 1) + size for n in (rows, columns))
    margins = [(0, 0, 0), (pad, rows_read - x.shape[1] - pad, 0)]
    margins += [(0, 0, 0), (pad, columns_read - x.shape[2] - pad, 0)]
    padded = lax.pad(x.transpose(3, 1, 0, 2), jnp.zeros((), x.dtype), margins)  # [F, H, B, W]
    span = stride * (columns - 1) + 1
    shifted = jnp.stack([padded[..., j : j + span : stride] for j in range(size)])
    gradient = lax.conv_general_dilated(
        shifted.reshape(-1, rows_read, batch * columns),
        g.transpose(1, 0, 2, 3).reshape(rows, batch * columns, -1),
        (1,),
        "VALID",
        rhs_dilation=(stride,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return gradient.reshape(size, -1, *gradient.shape[1:]).transpose(2, 0, 1, 3)


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
    x: Float[Array, "B H W F"], kernel: Float[Array, "k k 1 F"], stride: int = 1
) -> Float[Array, "B -(-H//{stride}) -(-W//{stride}) F"]:
    """A depthwise convolution as a sum of strided slices of the padded input."""
    # The barrier keeps the middle slice from being what was padded, to be computed anew.
    padded = lax.optimization_barrier(_pad(x, (kernel.shape[0] - 1) // 2))
    slices = _strided_slices(padded, kernel.shape[0], stride, x.shape)
    return sum(part * kernel[i, j, None, None] for (i, j), part in slices)


def depthwise_gradients(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "k k 1 F"],
    g: Float[Array, "B -(-H//{stride}) -(-W//{stride}) F"],
    stride: int = 1,
) -> Gradients:
    """That of x is g convolved with the flipped kernel, that of the kernel a sum over rows."""
    x_grad = depthwise_slices(_dilate(g, stride, x.shape), kernel[::-1, ::-1], 1)
    return x_grad, _depthwise_kernel_gradient(x, g, kernel.shape[0], stride)[:, :, None]


def _depthwise_kernel_gradient(x: Array, g: Array, size: int, stride: int) -> Array:
    """`[k, k, F]`, from sums over rows (of float32 or wider): a row and its sums stay cached."""
    batch, rows, columns, channels = g.shape
    padded = lax.optimization_barrier(_pad(x, (size - 1) // 2))
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


def _pad(x: Array, pad: int) -> Array:
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _strided_slices(padded: Array, size: int, stride: int, shape: tuple[int, ...]):
    """For every tap (i, j) of the kernel, the inputs it is multiplied with at all positions."""
    height, width = shape[1:3]
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


@jax.custom_vjp
def max_pool(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """Maximum over 3x3 windows at stride 2, padded with -inf by 1.

    On a CPU one axis after the other, each from its even and its odd positions: the gradient of a
    window reduction is ten times slower there. The two differ in where tied maxima send the
    gradient, which after a ReLU matters for zeros alone, and there the ReLU stops it anyway.
    """
    return lax.platform_dependent(x, cpu=halve_both_axes, default=window_maximum)


def _max_pool_backward(x, g):
    def gradient(x, g, formulation):
        return jax.vjp(formulation, x)[1](g)

    cpu, default = (partial(gradient, formulation=f) for f in (halve_both_axes, window_maximum))
    return lax.platform_dependent(x, g, cpu=cpu, default=default)


max_pool.defvjp(lambda x: (max_pool(x), x), _max_pool_backward)


def window_maximum(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """`max_pool` as XLA has it."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def halve_both_axes(x: Float[Array, "B H W F"]) -> Float[Array, "B -(-H//2) -(-W//2) F"]:
    """`max_pool`, one axis after the other."""
    return _halve_by_maximum(_halve_by_maximum(x, 1), 2)


def _halve_by_maximum(x: Array, axis: int) -> Array:
    """Output i is the maximum of positions 2i - 1, 2i and 2i + 1 along the axis."""
    lowest = jnp.array(-jnp.inf, x.dtype)

    def padded(values: Array, before: int, after: int) -> Array:
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (before, after, 0)
        return lax.pad(values, lowest, config)

    pairs = padded(x, 0, x.shape[axis] % 2)
    shape = (*x.shape[:axis], pairs.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    even, odd = jnp.unstack(pairs.reshape(shape), axis=axis + 1)
    return jnp.maximum(jnp.maximum(padded(odd, 1, -1), even), odd)

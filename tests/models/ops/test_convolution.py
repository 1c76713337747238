"""Every CPU formulation computes what the plain convolution does: values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlic_jax.models.ops import convolution

pytestmark = pytest.mark.numerical
POINTWISE = convolution.pointwise_dot, convolution.pointwise_gradients
DEPTHWISE = convolution.depthwise_slices, convolution.depthwise_gradients


def values_and_gradients(function, x, kernel, g):
    value, pullback = jax.vjp(function, x, kernel)
    return (value, *pullback(g))


def both(formulation, x, kernel, g, *options):
    """The value and the gradients of a formulation, a pair of functions."""
    forward, gradients = formulation
    return forward(x, kernel, *options), *gradients(x, kernel, g, *options)


def assert_same(formulation, x_shape, kernel_shape, stride, depthwise=False, same=None):
    """As the plain convolution, by the gradients that JAX derives of it."""
    options = (stride,) if same is None else (stride, same)

    def plain(x, kernel):
        return convolution.plain(x, kernel, stride, depthwise, bool(same))

    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], kernel_shape)
    g = jax.random.normal(keys[2], jax.eval_shape(plain, x, kernel).shape)
    expected = values_and_gradients(plain, x, kernel, g)
    compute = jax.jit(lambda *arrays: both(formulation, *arrays, *options))
    for got, want in zip(compute(x, kernel, g), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8, 35])
def test_depthwise_slices(stride, side):
    assert_same(DEPTHWISE, (2, side, side + 1, 6), (3, 3, 1, 6), stride, depthwise=True)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("sides", [(7, 8), (6, 1), (9, 4)])
def test_depthwise_slices_of_larger_windows(sides, same):
    for stride in (1, 2):
        assert_same(DEPTHWISE, (2, *sides, 3), (5, 5, 1, 3), stride, depthwise=True, same=same)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_is_the_padding_of_that_name(size, stride):
    """XLA's, which is TensorFlow's; and the gradients are those of it, however it is computed."""
    for sides, depthwise in (((7, 8), False), ((8, 9), True), ((1, 2), True)):
        kernel_shape = (size, size, 1, 3) if depthwise else (size, size, 3, 4)
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (2, *sides, 3))
        kernel = jax.random.normal(keys[1], kernel_shape)
        xla = partial(
            lax.conv_general_dilated,
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3 if depthwise else 1,
        )
        ours = partial(convolution.convolve, stride=stride, depthwise=depthwise, same=True)
        g = jax.random.normal(keys[2], jax.eval_shape(xla, x, kernel).shape)
        expected = values_and_gradients(xla, x, kernel, g)
        for got, want in zip(values_and_gradients(ours, x, kernel, g), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_depthwise_kernel_gradient_of_bfloat16_is_summed_in_float32(stride):
    """In bfloat16 itself sums of so many products would stop growing."""
    rng = np.random.default_rng(0)
    x, g = (
        jnp.asarray(rng.uniform(0, 1, (4, side, side, 3)), jnp.bfloat16)
        for side in (36, 36 // stride)
    )
    kernel = jnp.zeros((3, 3, 1, 3), jnp.bfloat16)
    _, got = convolution.depthwise_gradients(x, kernel, g, stride)
    wide = [array.astype(jnp.float32) for array in (x, kernel, g)]
    _, expected = jax.vjp(lambda kernel: convolution.plain(wide[0], kernel, stride, True), wide[1])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), expected(wide[2])[0], rtol=2**-8)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_pointwise_dot(stride, side):
    assert_same(POINTWISE, (2, side, side + 1, 6), (1, 1, 6, 5), stride)


@pytest.mark.parametrize("size", [1, 3])
def test_every_device_convolves_its_own_images(size):
    """Only the gradient of the kernel is exchanged."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    images, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("data",), ())
    )
    compute = jax.jit(
        lambda x, kernel, g: values_and_gradients(convolution.convolve, x, kernel, g),
        in_shardings=(images, everywhere, images),
        out_shardings=(images, images, everywhere),
    )
    shapes = ((8, 7, 9, 8), (size, size, 8, 8), (8, 7, 9, 8))
    program = compute.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    text = program.compile().as_text()
    exchanges = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")
    assert [text.count(exchange) for exchange in exchanges] == [1, 0, 0, 0]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depthwise", [False, True])
def test_plain(stride, depthwise):
    kernel_shape = (3, 3, 1, 6) if depthwise else (3, 3, 6, 5)

    def forward(x, kernel, stride):
        return convolution.plain(x, kernel, stride, depthwise)

    def gradients(x, kernel, g, stride):
        return convolution.plain_gradients(x, kernel, g, stride, depthwise)

    assert_same((forward, gradients), (2, 7, 8, 6), kernel_shape, stride, depthwise=depthwise)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_shape", [(3, 3, 1, 6), (3, 3, 6, 5), (1, 1, 6, 5)])
def test_convolve(kernel_shape, stride):
    """In a loop, recomputed, over devices and in float64: it is that of this platform."""
    depthwise = kernel_shape[2] == 1
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = (jnp.asarray(rng.normal(size=s)) for s in ((2, 7, 8, 6), kernel_shape))

        def loss(x, kernel):
            y = convolution.convolve(x, kernel, stride, depthwise=depthwise)
            return jnp.sum(jnp.sin(y))

        def plain(x, kernel):
            return jnp.sum(jnp.sin(convolution.plain(x, kernel, stride, depthwise)))

        def one_by_one(x, kernel):
            return jnp.sum(lax.map(lambda x: loss(x[None], kernel), x))

        def shared(x, kernel):
            gradients = jax.grad(loss, (0, 1))(x, kernel)
            return gradients[0], lax.psum(gradients[1], "data")

        ways = [jax.grad(f, (0, 1)) for f in (loss, jax.checkpoint(loss), one_by_one)]
        specs = {"in_specs": (rows, everywhere), "out_specs": (rows, everywhere)}
        ways.append(jax.shard_map(shared, mesh=mesh, check_vma=False, **specs))
        expected = jax.grad(plain, (0, 1))(x, kernel)
        for way in ways:
            for got, want in zip(jax.jit(way)(x, kernel), expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)

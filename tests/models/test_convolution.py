"""Every CPU formulation computes what the plain convolution does: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlic_jax.models import convolution

pytestmark = pytest.mark.numerical
EPSILON = np.finfo(np.float32).eps


def values_and_gradients(function, x, kernel, g):
    value, pullback = jax.vjp(function, x, kernel)
    return (value, *pullback(g))


def assert_same(function, reference, x_shape, kernel_shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], kernel_shape)
    g = jax.random.normal(keys[2], jax.eval_shape(reference, x, kernel).shape)
    expected = values_and_gradients(reference, x, kernel, g)
    for got, want in zip(values_and_gradients(function, x, kernel, g), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8, 35])
def test_depthwise_slices(stride, side):
    assert_same(
        lambda x, k: convolution.depthwise_slices(x, k, stride),
        lambda x, k: convolution.plain(x, k, stride, depthwise=True),
        (2, side, side + 1, 6),
        (3, 3, 1, 6),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_the_depthwise_kernel_gradient_of_bfloat16_is_summed_in_float32(stride):
    """In bfloat16 itself sums of so many products would stop growing."""
    rng = np.random.default_rng(0)
    x, g = (
        jnp.asarray(rng.uniform(0, 1, (4, side, side, 3)), jnp.bfloat16)
        for side in (36, 36 // stride)
    )
    kernel = jnp.zeros((3, 3, 1, 3), jnp.bfloat16)
    _, pullback = jax.vjp(lambda kernel: convolution.depthwise_slices(x, kernel, stride), kernel)
    wide = [array.astype(jnp.float32) for array in (x, kernel, g)]
    _, expected = jax.vjp(lambda kernel: convolution.plain(wide[0], kernel, stride, True), wide[1])
    got = pullback(g)[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), expected(wide[2])[0], rtol=2**-8)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_pointwise_dot(stride, side):
    assert_same(
        lambda x, k: convolution.pointwise_dot(x, k, stride),
        lambda x, k: convolution.plain(x, k, stride),
        (2, side, side + 1, 6),
        (1, 1, 6, 5),
    )


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_dense(size, stride, side):
    assert_same(
        lambda x, k: convolution.dense(x, k, stride),
        lambda x, k: convolution.plain(x, k, stride),
        (2, side, side + 1, 6),
        (size, size, 6, 5),
    )


@pytest.mark.parametrize("shape", [(2, 8, 6), (1, 7, 7), (3, 1, 4), (2, 2, 5)])
def test_winograd(shape):
    assert_same(convolution.winograd, convolution.plain, (*shape, 6), (3, 3, 6, 5))


def test_the_error_of_winograd_is_that_of_float32():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shapes = ((2, 14, 14, 256), (3, 3, 256, 256), (2, 14, 14, 256))
        x, kernel, g = (rng.standard_normal(shape) for shape in shapes)
        exact = values_and_gradients(convolution.plain, x, kernel, g)
        rounded = (array.astype(np.float32) for array in (x, kernel, g))
        for got, want in zip(
            values_and_gradients(convolution.winograd, *rounded), exact, strict=True
        ):
            assert got.dtype == jnp.float32
            got, want = np.asarray(got), np.asarray(want)
            # Of sums of 256 products, whose roundings have both signs, a root of 256 epsilons;
            # the transforms before and after enlarge it by no more than 4.
            assert np.max(np.abs(got - want)) < 4 * 16 * EPSILON * np.max(np.abs(want))


@pytest.mark.parametrize("formulation", ["winograd", "dense"])
def test_every_device_convolves_its_own_images(formulation):
    """Only the gradient of the kernel is exchanged."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    images, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("data",), ())
    )
    compute = jax.jit(
        lambda *arrays: values_and_gradients(getattr(convolution, formulation), *arrays),
        in_shardings=(images, everywhere, images),
        out_shardings=(images, images, everywhere),
    )
    shapes = ((8, 7, 9, 8), (3, 3, 8, 8), (8, 7, 9, 8))
    program = compute.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    text = program.compile().as_text()
    exchanges = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")
    assert [text.count(exchange) for exchange in exchanges] == [1, 0, 0, 0]


@pytest.mark.parametrize("stride", [1, 2])
def test_dense_of_few_inputs(stride):
    assert_same(
        lambda x, k: convolution.dense(x, k, stride),
        lambda x, k: convolution.plain(x, k, stride),
        (2, 7, 8, 3),
        (3, 3, 3, 5),
    )


@pytest.mark.parametrize(
    ("depthwise", "kernel_shape", "stride", "dtype", "expected"),
    [
        (True, (3, 3, 1, 256), 1, "float32", "depthwise_slices"),
        (False, (1, 1, 256, 4), 2, "float32", "pointwise_dot"),
        (False, (3, 3, 128, 128), 1, "float32", "winograd"),
        (False, (3, 3, 128, 128), 1, "bfloat16", "dense"),  # too few bits for it
        (False, (3, 3, 128, 128), 2, "float32", "dense"),
        (False, (5, 5, 128, 128), 1, "float32", "dense"),
        (False, (3, 3, 256, 127), 1, "float32", "dense"),
        (False, (3, 3, 127, 256), 1, "float32", "dense"),
        (False, (7, 7, 3, 4), 2, "float32", "dense"),
    ],
)
def test_the_platform_chooses_the_formulation(
    monkeypatch, depthwise, kernel_shape, stride, dtype, expected
):
    called = []
    names = ("depthwise_slices", "pointwise_dot", "winograd", "dense", "plain")
    for name in names:
        monkeypatch.setattr(convolution, name, lambda *_, name=name: called.append(name))
    x = jnp.zeros((1, 4, 4, kernel_shape[2] if not depthwise else kernel_shape[3]), dtype)
    kernel = jnp.zeros(kernel_shape, dtype)
    convolution.convolve(x, kernel, stride, depthwise=depthwise)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    convolution.convolve(x, kernel, stride, depthwise=depthwise)
    assert called == [expected, "plain"]


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 1, 2, 1)])
def test_max_pool(shape, monkeypatch):
    ranks = jax.random.permutation(jax.random.key(0), np.prod(shape)).reshape(shape)
    x = ranks.astype(jnp.float32) - 1000  # below zero, which padding must never be
    value, pullback = jax.vjp(convolution.max_pool, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    expected, expected_pullback = jax.vjp(convolution.max_pool, x)
    np.testing.assert_array_equal(value, expected)
    # Whole numbers: their sums are exact in any order.
    g = jax.random.randint(jax.random.key(1), value.shape, -9, 9).astype(jnp.float32)
    np.testing.assert_array_equal(pullback(g)[0], expected_pullback(g)[0])


def test_max_pool_after_relu_sends_no_gradient_into_ties():
    x = -jnp.ones((1, 4, 4, 1))
    gradient = jax.grad(lambda x: jnp.sum(convolution.max_pool(lax.max(x, 0.0))))(x)
    np.testing.assert_array_equal(gradient, 0)

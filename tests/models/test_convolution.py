"""Every CPU formulation computes what the plain convolution does: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlic_jax.models import convolution


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


@pytest.mark.parametrize("stride", [1, 2])
def test_dense_of_few_inputs(stride):
    assert_same(
        lambda x, k: convolution.dense(x, k, stride),
        lambda x, k: convolution.plain(x, k, stride),
        (2, 7, 8, 3),
        (3, 3, 3, 5),
    )


@pytest.mark.parametrize(
    ("depthwise", "kernel_shape", "stride", "expected"),
    [
        (True, (3, 3, 1, 256), 1, "depthwise_slices"),
        (False, (1, 1, 256, 4), 2, "pointwise_dot"),
        (False, (3, 3, 256, 4), 1, "dense"),
        (False, (7, 7, 3, 4), 2, "dense"),
    ],
)
def test_the_platform_chooses_the_formulation(
    monkeypatch, depthwise, kernel_shape, stride, expected
):
    called = []
    names = ("depthwise_slices", "pointwise_dot", "dense", "plain")
    for name in names:
        monkeypatch.setattr(convolution, name, lambda *_, name=name: called.append(name))
    x = jnp.zeros((1, 4, 4, kernel_shape[2] if not depthwise else kernel_shape[3]))
    kernel = jnp.zeros(kernel_shape)
    convolution.convolve(x, kernel, stride, depthwise=depthwise)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    convolution.convolve(x, kernel, stride, depthwise=depthwise)
    assert called == [expected, "plain"]


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 1, 2, 1)])
def test_max_pool(shape, monkeypatch):
    x = jax.random.permutation(jax.random.key(0), np.prod(shape)).reshape(shape).astype(jnp.float32)
    value, pullback = jax.vjp(convolution.max_pool, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    expected, expected_pullback = jax.vjp(convolution.max_pool, x)
    np.testing.assert_array_equal(value, expected)
    g = jax.random.normal(jax.random.key(1), value.shape)
    np.testing.assert_allclose(pullback(g)[0], expected_pullback(g)[0], rtol=1e-6)


def test_max_pool_after_relu_sends_no_gradient_into_ties():
    x = -jnp.ones((1, 4, 4, 1))
    gradient = jax.grad(lambda x: jnp.sum(convolution.max_pool(lax.max(x, 0.0))))(x)
    np.testing.assert_array_equal(gradient, 0)

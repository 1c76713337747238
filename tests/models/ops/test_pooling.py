"""The pooling of a ResNet has the values of XLA's on every platform, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.ops import pooling

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("values", [1000, 3], ids=["distinct", "ties"])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 1, 2, 1)])
def test_max_pool(shape, values):
    keys = jax.random.split(jax.random.key(0))
    ranks = jax.random.permutation(keys[0], np.prod(shape)).reshape(shape)
    x = (ranks % values - values + 1).astype(jnp.float32)  # no more than 0, as padding never is
    value, pullback = jax.vjp(jax.jit(pooling.max_pool), x)
    np.testing.assert_array_equal(value, pooling.plain(x))
    # Whole numbers: their sums are exact in any order.
    g = jax.random.randint(keys[1], value.shape, -9, 9).astype(jnp.float32)
    expected = pooling.plain_gradient(x, value, g)
    np.testing.assert_array_equal(pullback(g)[0], expected)
    np.testing.assert_array_equal(pooling.gradient_by_taps(x, value, g), expected)


@pytest.mark.torch
def test_equal_maxima_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 8, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    torch.nn.functional.max_pool2d(theirs, 3, 2, 1).square().sum().backward()
    ours = jax.grad(lambda x: jnp.sum(jnp.square(pooling.max_pool(x))))(jnp.asarray(x))
    np.testing.assert_array_equal(ours, theirs.grad.permute(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 1, 2, 1)])
def test_means_at_the_end_of_an_odd_axis_are_of_what_there_is(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows, columns = (range(0, length, 2) for length in shape[1:3])
    expected = [[x[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for j in columns] for i in rows]
    got = pooling.average_pool(jnp.asarray(x))
    np.testing.assert_allclose(got, np.array(expected).transpose(2, 0, 1, 3), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 2, 2, 1)])
def test_a_blur_is_a_convolution_of_the_mirrored_image(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mirrored = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    rows, columns = (range(0, length, 2) for length in shape[1:3])
    expected = [
        [np.einsum("bijf,ij->bf", mirrored[:, i : i + 3, j : j + 3], kernel) for j in columns]
        for i in rows
    ]
    got = pooling.blur_pool(jnp.asarray(x))
    np.testing.assert_allclose(got, np.array(expected).transpose(2, 0, 1, 3), atol=1e-6)

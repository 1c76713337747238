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

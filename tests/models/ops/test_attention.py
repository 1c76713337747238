"""Attention against its definition, and its softmax in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.models.ops.attention import attend


def drawn(seed: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, tokens, 3, 8))


def defined(query, key, value):
    scores = np.einsum("btnf,bsnf->bnts", query, key) / np.sqrt(8)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnts,bsnf->btnf", weights, value)


def test_it_is_what_it_is_defined_as():
    query, key, value = drawn(0, 5), drawn(1, 7), drawn(2, 7)
    with jax.enable_x64(True):
        got = jax.jit(attend)(query, key, value)
    np.testing.assert_allclose(got, defined(query, key, value), rtol=1e-12)


def test_its_softmax_is_float32_in_bfloat16():
    """Of a thousand tokens alike none but the last, whose score is greater by less than bfloat16
    tells apart: 64 and 64.2.
    """
    query = jnp.full((1, 1, 1, 1), 8, jnp.bfloat16)
    key = jnp.full((1, 1000, 1, 1), 8, jnp.bfloat16).at[:, -1].set(8.0625)
    value = jnp.zeros((1, 1000, 1, 1), jnp.bfloat16).at[:, -1].set(1)
    got = jax.jit(attend)(query, key, value)
    assert got.dtype == jnp.bfloat16
    wanted = np.exp(0.5) / (999 + np.exp(0.5))
    np.testing.assert_allclose(np.asarray(got, np.float32).item(), wanted, rtol=2**-7)


def test_it_has_gradients_in_bfloat16():
    x = jnp.asarray(drawn(0, 4), jnp.bfloat16)

    def square(x):
        return jnp.sum(attend(x, x, x).astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(square))(x)
    assert gradient.dtype == jnp.bfloat16 and np.isfinite(np.asarray(gradient, np.float32)).all()


def test_the_program_for_a_gpu_can_be_made_without_one():
    x = jax.ShapeDtypeStruct((2, 5, 3, 8), jnp.bfloat16)
    exported = jax.export.export(jax.jit(attend), platforms=("cuda", "cpu"))(x, x, x)
    assert exported.out_avals[0].shape == (2, 5, 3, 8)

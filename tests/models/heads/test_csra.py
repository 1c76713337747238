"""CSRA against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from mlic_jax.models.heads.csra import CSRA, TEMPERATURES

pytestmark = pytest.mark.numerical

CLASSES = 7
RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((3, 4, 5, 16), np.float32)


def softmax(x, axis):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def expected(kernels, residual):
    """The logits as the paper has them, head by head and in float64."""
    positions = MAPS.reshape(3, 20, 16).astype(np.float64)
    logits = 0
    for kernel, temperature in zip(kernels, TEMPERATURES[len(kernels)], strict=True):
        scores = positions @ (kernel / np.sqrt((kernel**2).sum(axis=0)))
        if temperature is None:
            attention = scores.max(axis=1)
        else:
            attention = (softmax(temperature * scores, 1) * scores).sum(axis=1)
        logits = logits + scores.mean(axis=1) + residual * attention
    return logits


@pytest.mark.parametrize("heads", TEMPERATURES)
def test_logits_are_those_of_the_paper(heads):
    model = CSRA(CLASSES, heads, residual=0.4)
    variables = jax.jit(model.init)(jax.random.key(heads), MAPS)
    kernels = np.asarray(variables["params"]["kernel"], np.float64)
    got = jax.jit(model.apply)(variables, MAPS)["logits"]
    np.testing.assert_allclose(got, expected(kernels, 0.4), rtol=1e-5, atol=1e-5)


def test_it_has_a_weight_a_feature_class_and_head_and_no_bias():
    shapes = jax.eval_shape(CSRA(CLASSES, 6).init, jax.random.key(0), MAPS)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 6 * 16 * CLASSES


def test_the_maps_are_the_spatial_softmax_of_the_first_head():
    model = CSRA(CLASSES, 2)
    variables = jax.jit(model.init)(jax.random.key(0), MAPS)
    kernel = np.asarray(variables["params"]["kernel"][0], np.float64)
    scores = MAPS.reshape(3, 20, 16) @ (kernel / np.linalg.norm(kernel, axis=0))
    want = softmax(scores, 1)
    want = (want / want.max(axis=1, keepdims=True)).reshape(3, 4, 5, CLASSES)
    got = jax.jit(model.apply)(variables, MAPS)["class_maps"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    model = CSRA(CLASSES, 4, residual=0.4)
    with jax.enable_x64(True):
        maps = jnp.asarray(MAPS, float)
        kernel = jax.jit(model.init)(jax.random.key(0), maps)["params"]["kernel"]
        kernel = kernel.astype(float)

        def apply(kernel, maps):
            return model.apply({"params": {"kernel": kernel}}, jnp.asarray(maps))["logits"]

        jax.test_util.check_grads(apply, (kernel, maps), order=1, modes=["rev"], rtol=1e-6)

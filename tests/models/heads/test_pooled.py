"""The baseline: poolings, and logits against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.heads.pooled import global_pool, summarise

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    ("pooling", "expected"), [("avg", [1.5, 4.0]), ("max", [3.0, 7.0]), ("gwp", [2.25, 5.5])]
)
def test_poolings(pooling, expected):
    features = jnp.array([[[[0.0, 1.0], [1.0, 3.0]], [[2.0, 5.0], [3.0, 7.0]]]])
    np.testing.assert_allclose(global_pool(summarise(features), pooling), [expected])


def drawn(rng, shape):
    """Kernels that keep activations in range, and positive statistics."""
    if len(shape) == 1:
        return rng.uniform(0.5, 1, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) / np.float32(np.prod(shape[:-1]) ** 0.5)


def test_logits_are_linear_in_the_pooled_last_map(config):
    config.model.name = "pooled"
    config.model.pooling = "max"
    model = create_model(config.model, 5)
    images = np.random.default_rng(0).standard_normal((3, 64, 64, 3), np.float32)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: drawn(rng, leaf.shape), shapes)
    assert set(variables["params"]) == {"features", "convclass"}
    got = jax.jit(model.apply)(variables, images)

    features = {name: variables[name]["features"] for name in ("params", "batch_stats")}
    backbone = create_backbone(config.model.backbone, config.model.width)
    maps = jax.jit(backbone.apply)(features, images)[-1]
    layer = variables["params"]["convclass"]
    want = np.asarray(maps).max(axis=(1, 2)) @ layer["kernel"] + layer["bias"]
    assert set(got) == {"logits"} and got["logits"].dtype == jnp.float32
    np.testing.assert_allclose(got["logits"], want, rtol=1e-5, atol=1e-5)


def test_an_unknown_pooling_is_refused(config):
    config.model.name, config.model.pooling = "pooled", "sum"
    with pytest.raises(UsageError, match=r"model\.pooling is 'sum'; known are avg, max, gwp"):
        create_model(config.model, 5)

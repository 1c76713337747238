"""The baseline: poolings, and logits against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.pooled import global_pool


@pytest.mark.parametrize(
    ("pooling", "expected"), [("avg", [1.5, 4.0]), ("max", [3.0, 7.0]), ("gwp", [2.25, 5.5])]
)
def test_poolings(pooling, expected):
    features = jnp.array([[[[0.0, 1.0], [1.0, 3.0]], [[2.0, 5.0], [3.0, 7.0]]]])
    np.testing.assert_allclose(global_pool(features, pooling), [expected])


def test_logits_are_linear_in_the_pooled_last_map(config):
    config.model.name = "pooled"
    config.model.pooling = "max"
    model = create_model(config.model, 5)
    images = jax.random.normal(jax.random.key(0), (3, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert set(variables["params"]) == {"features", "convclass"}
    got = model.apply(variables, images)

    features = {name: variables[name]["features"] for name in ("params", "batch_stats")}
    maps = create_backbone(config.model.backbone, config.model.width).apply(features, images)[-1]
    layer = jax.device_get(variables["params"]["convclass"])
    want = np.asarray(maps).max(axis=(1, 2)) @ layer["kernel"] + layer["bias"]
    assert set(got) == {"logits"} and got["logits"].dtype == jnp.float32
    np.testing.assert_allclose(got["logits"], want, rtol=1e-5, atol=1e-5)


def test_an_unknown_pooling_is_refused(config):
    config.model.name, config.model.pooling = "pooled", "sum"
    with pytest.raises(UsageError, match=r"model\.pooling is 'sum'; known are avg, max, gwp"):
        create_model(config.model, 5)

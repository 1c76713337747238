"""The baseline: poolings, logits and class activation maps against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError
from mlic_jax.models import create_backbone, create_model
from mlic_jax.models.heads.pooled import global_pool, stretched, summarise
from mlic_jax.models.layers import LayerNorm
from mlic_jax.models.ops.regions import class_regions

pytestmark = pytest.mark.numerical

IMAGES = np.random.default_rng(0).standard_normal((3, 64, 96, 3), np.float32)


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


@pytest.fixture
def build(config):
    """(pooling) -> the model, its variables, the last map of `IMAGES`, the kernel and the bias."""

    def make(pooling):
        config.model.update(name="pooled", pooling=pooling, top_n=3, threshold=0.47)
        model = create_model(config.model, 5)
        rng = np.random.default_rng(1)
        shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        variables = jax.tree.map(lambda leaf: drawn(rng, leaf.shape), shapes)
        assert set(variables["params"]) == {"features", "convclass"}
        features = {name: variables[name]["features"] for name in ("params", "batch_stats")}
        backbone = create_backbone(config.model.backbone, config.model.width)
        maps = jax.jit(backbone.apply)(features, IMAGES)[-1]
        layer = variables["params"]["convclass"]
        return model, variables, np.asarray(maps, float), layer["kernel"], layer["bias"]

    return make


@pytest.mark.parametrize("pooling", ["avg", "max", "gwp"])
def test_logits_are_linear_in_the_pooled_last_map(build, pooling):
    model, variables, maps, kernel, bias = build(pooling)
    got = jax.jit(model.apply)(variables, IMAGES)
    mean, maximum = maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))
    pooled = {"avg": mean, "max": maximum, "gwp": (mean + maximum) / 2}[pooling]
    assert set(got) == {"logits", "boxes", "box_classes"} and got["logits"].dtype == jnp.float32
    np.testing.assert_allclose(got["logits"], pooled @ kernel + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_where_a_label_is_seen_is_its_class_activation_map(build, pooling):
    """What the classifier says of every position; for `avg` its mean is the logit."""
    model, variables, maps, kernel, bias = build(pooling)
    got, beside = jax.jit(partial(model.apply, mutable=["intermediates"]))(variables, IMAGES)
    classes = np.argsort(-got["logits"], axis=1)[:, :3]
    np.testing.assert_array_equal(got["box_classes"], classes)
    scores = np.moveaxis(maps @ kernel + bias, -1, 1)  # [B, C, h, w]
    if pooling == "avg":
        np.testing.assert_allclose(scores.mean(axis=(2, 3)), got["logits"], rtol=1e-5, atol=1e-5)
    low, high = (of(scores, axis=(2, 3), keepdims=True) for of in (np.min, np.max))
    expected = np.take_along_axis((scores - low) / (high - low), classes[:, :, None, None], axis=1)
    (class_maps,) = beside["intermediates"]["class_maps"]
    assert class_maps.shape == (3, 3, 2, 3)
    np.testing.assert_allclose(class_maps, expected, atol=1e-4)
    boxes = class_regions(class_maps, IMAGES.shape[1:3], 0.47, "exact")
    np.testing.assert_array_equal(got["boxes"], boxes)


def test_a_map_that_is_the_same_everywhere_is_one():
    scores = jnp.array([[[[2.0, -3.0], [5.0, -3.0]]]])
    np.testing.assert_array_equal(stretched(scores), [[[[0, 1], [1, 1]]]])


def test_in_training_no_regions_are_found(build):
    model, variables, *_ = build("gwp")
    shapes, _ = jax.eval_shape(
        partial(model.apply, train=True, mutable=["batch_stats"]), variables, IMAGES
    )
    assert set(shapes) == {"logits"}


def test_a_run_of_before_there_were_regions_opens():
    """Its options say nothing of regions, or of more than it has classes."""
    before = {"name": "pooled", "backbone": "resnet10", "width": 0.125, "pooling": "avg"}
    for section in (before, before | {"top_n": 4}):
        model = create_model(ConfigDict(section), 2)
        outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)
        assert outputs["boxes"].shape == (3, 2, 4)


def test_an_unknown_pooling_is_refused(config):
    config.model.name, config.model.pooling = "pooled", "sum"
    with pytest.raises(UsageError, match=r"model\.pooling is 'sum'; known are avg, max, gwp"):
        create_model(config.model, 5)


@pytest.mark.parametrize("level", [0, 3])
def test_the_gradient_of_a_maximum_is_a_number_however_xla_rounds(level):
    """Without optimisation XLA computes these maps twice, not to the same bit."""

    def total(x):
        norm = LayerNorm().apply({"params": {"scale": scale, "bias": scale - 1}}, x)
        return jnp.sum(summarise(norm)["maximum"])

    scale = jnp.linspace(0.5, 2, 8)
    x = jax.random.normal(jax.random.key(0), (16, 2, 2, 8))
    options = {"xla_backend_optimization_level": level}
    gradient = jax.jit(jax.grad(total), compiler_options=options)(x)
    assert np.isfinite(gradient).all() and gradient.any()


def test_the_gradient_of_a_maximum_goes_to_where_it_is():
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 4)), jnp.float32)
    weights = jnp.arange(8.0).reshape(2, 4)
    got = jax.grad(lambda maps: jnp.sum(weights * summarise(maps)["maximum"]))(maps)
    highest = maps.max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(got, jnp.where(maps == highest, weights[:, None, None], 0))

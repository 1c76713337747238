"""ConvNeXt: what it has of its own. Its values are compared in tests/weight_conversion."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.models.backbones import convnext
from mlic_jax.models.backbones.convnext import Block, ConvNeXt, Patches, ResponseNorm, Size

TINY = Size((1, 2, 1, 1), (4, 4, 6, 8), 2)


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Every published size is as small as can be."""
    for name, size in convnext.SIZES.items():
        monkeypatch.setitem(convnext.SIZES, name, TINY._replace(version=size.version))


@pytest.mark.parametrize("version", [1, 2])
def test_there_are_no_batch_statistics(version):
    backbone = ConvNeXt(TINY._replace(version=version))
    variables = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(variables) == {"params"}
    block = variables["params"]["stage2_1"]
    parts = {"depthwise", "norm", "expand", "reduce"}
    assert set(block) == parts | {{1: "layer_scale", 2: "response_norm"}[version]}


def test_the_last_map_is_normalised_at_every_position():
    images = jax.random.normal(jax.random.key(0), (1, 32, 64, 3))
    key = jax.random.key(1, impl="rbg")
    maps, _ = jax.jit(ConvNeXt(Size((1, 1, 1, 1), (4, 4, 6, 8), 2)).init_with_output)(key, images)
    assert [x.shape for x in maps] == [(1, 8, 16, 4), (1, 4, 8, 4), (1, 2, 4, 6), (1, 1, 2, 8)]
    np.testing.assert_allclose(maps[-1].mean(axis=-1), 0, atol=1e-6)
    assert abs(maps[2].mean(axis=-1)).max() > 1e-3


def test_blocks_are_dropped_the_more_the_deeper_they_are():
    rates = {}

    def note(method, args, kwargs, context):
        if isinstance(context.module, Block):
            rates[context.module.name] = context.module.drop_rate
        return method(*args, **kwargs)

    backbone = ConvNeXt(TINY, drop_path=0.4)
    with nn.intercept_methods(note):
        jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(list(rates.values()), [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-12)
    assert list(rates) == ["stage1_0", "stage2_0", "stage2_1", "stage3_0", "stage4_0"]


def test_only_training_drops():
    """Which has a key; whether statistics move is another matter."""
    x = jax.random.normal(jax.random.key(0), (32, 4, 4, 4))
    plain, dropping = Block(2), Block(2, 0.5)
    variables = jax.jit(plain.init, static_argnums=2)(jax.random.key(1), x, False, None)
    expected = plain.apply(variables, x, False, None)
    np.testing.assert_array_equal(dropping.apply(variables, x, True, None), expected)
    outputs = [
        dropping.apply(variables, x, False, None, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(*outputs[:2])
    is_kept = np.asarray((outputs[0] != x).any(axis=(1, 2, 3)))
    assert 0 < is_kept.sum() < 32  # by chance all or none in 1 of 2^31 cases
    np.testing.assert_allclose(outputs[0][is_kept], (2 * expected - x)[is_kept], atol=1e-5)
    assert (outputs[0] != outputs[2]).any()


def test_a_feature_that_is_nowhere_has_a_gradient():
    """Its norm is 0, and the root of 0 has none."""
    x = jnp.ones((1, 2, 2, 3)).at[..., 1].set(0)
    norm = ResponseNorm()
    variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(norm.apply(variables, x))))(x)
    assert np.isfinite(gradient).all() and gradient.any()


def test_features_are_weighed_by_their_norm_over_the_positions():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    scale, bias = np.arange(4.0), np.array([0.5, 0.0, -1.0, 2.0])
    norms = np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True))
    expected = x + scale * x * norms / (norms.mean(axis=-1, keepdims=True) + 1e-6) + bias
    with jax.enable_x64(True):
        variables = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
        got = ResponseNorm(jnp.float64).apply(variables, jnp.asarray(x))
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_patches_are_a_convolution_and_edges_that_make_none_are_not_seen():
    x = jax.random.normal(jax.random.key(0), (2, 11, 9, 3))
    patches = Patches(5, 4)
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    params = {"kernel": kernel, "bias": jnp.arange(5.0)}
    convolved = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = patches.apply({"params": params}, x)
    assert got.shape == (2, 2, 2, 5)
    np.testing.assert_allclose(got, convolved + jnp.arange(5.0)[None, None, None], atol=1e-4)


@pytest.mark.parametrize("name", ["mcar", "msrn", "pooled", "csra", "ml_decoder", "query2label"])
def test_every_model_runs_on_it(tiny_sizes, name):
    config = default_config().model
    config.update(name=name, backbone="convnext_base", drop_path=0.5, pool_ratio=0.5, head_width=24)
    labels = {"word_vectors": np.eye(4, dtype=np.float32), "attention_mask": np.eye(4, dtype=bool)}
    model = create_model(config, 4, **labels if name == "msrn" else {})
    images = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs = jax.eval_shape(model.apply, variables, images)
    assert outputs["logits"].shape == (2, 4)
    assert outputs["logits"].dtype == jnp.float32
    if name != "msrn":
        assert outputs["boxes"].shape == (2, 4, 4)

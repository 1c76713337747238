"""EfficientNet: what it has of its own. Its values are compared in tests/weight_conversion."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.models.backbones import efficientnet
from mlic_jax.models.backbones.efficientnet import SIZES, EfficientNet, MBConv, Size
from mlic_jax.models.layers import ConvBatchNorm, SqueezeExcite

TINY = Size(0.25, 0.5)  # of a block a stage, but for one of two


def made(module_class, backbone, size=64):
    """The modules of a class inside a backbone, in order."""
    found = []

    def note(method, args, kwargs, context):
        if isinstance(context.module, module_class) and context.method_name == "__call__":
            found.append(context.module)
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return found


def test_lite_scales_neither_its_ends_nor_their_blocks():
    assert SIZES["efficientnet_lite4"].blocks == (1, 4, 4, 6, 6, 8, 1)
    assert SIZES["efficientnet_b4"].blocks == (2, 4, 4, 6, 6, 8, 2)
    for size, stem, head in ((Size(1.4, 0.5, lite=True), 32, 1280), (Size(1.4, 0.5), 48, 1792)):
        layers = made(ConvBatchNorm, EfficientNet(size))
        assert (layers[0].features, layers[-1].features) == (stem, head)
        assert bool(made(SqueezeExcite, EfficientNet(size))) != size.lite
        assert {layer.activation for layer in layers} == {nn.relu6 if size.lite else nn.silu, None}


@pytest.mark.parametrize("by_authors", [True, False])
def test_who_trained_a_network_decides_its_padding_and_normalisation(by_authors):
    layers = made(ConvBatchNorm, EfficientNet(TINY._replace(by_authors=by_authors)))
    settings = {(layer.same, layer.epsilon, layer.momentum) for layer in layers}
    assert settings == {(True, 1e-3, 0.01) if by_authors else (False, 1e-5, 0.1)}


def test_squeezing_is_of_the_inputs_of_a_block():
    blocks = made(MBConv, EfficientNet(SIZES["efficientnet_b0"]))
    squeezed = [
        layer.squeezed for layer in made(SqueezeExcite, EfficientNet(SIZES["efficientnet_b0"]))
    ]
    inputs = [32, *(block.features for block in blocks[:-1])]
    assert squeezed == [count // 4 for count in inputs]


def test_features_are_weighed_by_their_means():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5))
    kernels, biases = (rng.normal(size=(5, 2)), rng.normal(size=(2, 5))), rng.normal(size=(2, 5))
    hidden = np.maximum(x.mean(axis=(1, 2)) @ kernels[0] + biases[0, :2], 0)
    factors = 1 / (1 + np.exp(-(hidden @ kernels[1] + biases[1])))
    params = {
        "reduce": {"kernel": kernels[0], "bias": biases[0, :2]},
        "expand": {"kernel": kernels[1], "bias": biases[1]},
    }
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        got = SqueezeExcite(2, dtype=jnp.float64).apply({"params": params}, jnp.asarray(x))
        np.testing.assert_allclose(got, x * factors[:, None, None], rtol=1e-12)


def test_blocks_are_dropped_the_more_the_deeper_they_are():
    rates = [block.drop_rate for block in made(MBConv, EfficientNet(TINY, drop_path=0.6))]
    np.testing.assert_allclose(rates, np.linspace(0, 0.6, len(rates)), rtol=1e-12)


def test_only_training_drops_and_only_beside_a_shortcut():
    x = jax.random.normal(jax.random.key(0), (32, 4, 4, 8))
    for features, has_shortcut in ((8, True), (16, False)):
        block = MBConv(features, 3, 1, 1, True, ConvBatchNorm, 0.5)
        variables = jax.jit(block.init, static_argnums=2)(jax.random.key(1), x, False, None)
        expected = block.apply(variables, x, False, None)
        keys = {"dropout": jax.random.key(0)}
        outputs = block.apply(variables, x, False, None, rngs=keys)
        is_as_before = np.asarray((outputs == expected).all(axis=(1, 2, 3)))
        assert is_as_before.any() != has_shortcut  # what is kept counts twice
        is_dropped = np.asarray((outputs == x).all(axis=(1, 2, 3))) if has_shortcut else [False]
        assert any(is_dropped) == has_shortcut and not all(is_dropped)


@pytest.mark.parametrize("name", ["mcar", "msrn", "csra", "query2label"])
def test_every_model_runs_on_it(monkeypatch, name):
    monkeypatch.setitem(efficientnet.SIZES, "efficientnet_lite0", TINY._replace(lite=True))
    config = default_config().model
    config.update(name=name, backbone="efficientnet_lite0", pool_ratio=0.5, drop_path=0.2)
    labels = {"word_vectors": np.eye(4, dtype=np.float32), "attention_mask": np.eye(4, dtype=bool)}
    model = create_model(config, 4, **labels if name == "msrn" else {})
    images = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs = jax.eval_shape(model.apply, variables, images)
    assert outputs["logits"].shape == (2, 4)

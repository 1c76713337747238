"""TResNet: what it has of its own. Its values are compared in tests/weight_conversion."""

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.models.backbones.tresnet import Block, Size, TResNet, space_to_depth
from mlic_jax.models.layers import ConvBatchNorm


def test_pixels_of_a_block_become_features_row_by_row():
    x = np.arange(2 * 9 * 11 * 3).reshape(2, 9, 11, 3)
    got = space_to_depth(jnp.asarray(x, jnp.float32))
    assert got.shape == (2, 2, 2, 48)
    np.testing.assert_array_equal(got[1, 1, 0], x[1, 4:8, 0:4].ravel())


def test_only_the_first_stages_are_squeezed_and_the_last_are_bottlenecks():
    for bottlenecks in (False, True):
        backbone = TResNet(Size((1, 1, 1, 1), 0.125, bottlenecks))
        images = jnp.zeros((1, 64, 64, 3))
        params = jax.eval_shape(backbone.init, jax.random.key(0), images)["params"]
        has = {name: set(block) for name, block in params.items() if name != "stem"}
        assert {n: "squeeze" in parts for n, parts in has.items()} == {
            **{"layer1_0": True, "layer2_0": True, "layer3_0": True, "layer4_0": False}
        }
        assert ["conv3" in parts for parts in has.values()] == [
            bottlenecks,
            bottlenecks,
            True,
            True,
        ]
        assert params["layer3_0"]["squeeze"]["reduce"]["bias"].shape == (64,)  # at least


def test_the_sign_of_a_scale_does_not_matter_in_place():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    scale = jnp.array([0.5, -0.5, 0.0])
    for positive, expected in ((True, jnp.abs(scale) + 1e-5), (False, scale)):
        layer = ConvBatchNorm(3, positive=positive)
        variables = layer.init(jax.random.key(1), x)
        given = {**variables["params"], "scale": scale}
        wanted = {**variables["params"], "scale": expected}
        got = layer.apply({**variables, "params": given}, x)
        plain = ConvBatchNorm(3).apply({**variables, "params": wanted}, x)
        np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-7)
        assert bool(got[..., 2].any()) == positive


def test_a_shortcut_of_a_block_that_halves_sees_all_positions():
    """A blur and a mean leave out none, as strides would."""
    block = Block(4, 2, False, True, ConvBatchNorm)
    x = jnp.ones((1, 8, 8, 4))
    variables = block.init(jax.random.key(0), x, False, None)
    gradient = jax.grad(lambda x: block.apply(variables, x, False, None).sum())(x)
    assert (np.abs(gradient).sum(axis=-1) > 0).all()

"""Swin Transformer: what it has of its own. Its values are compared in tests/weight_conversion."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mlic_jax.config import default_config
from mlic_jax.models import create_model
from mlic_jax.models.backbones import swin
from mlic_jax.models.backbones.swin import (
    Block,
    Cut,
    Downsample,
    PositionBias,
    Size,
    Swin,
    distance_index,
    unit,
)

TINY = Size((1, 2, 1, 1), (1, 2, 4, 8), (2, 2, 2, 1), 1)


def of_version(version: int) -> Swin:
    return Swin(TINY._replace(version=version), width=0.125, drop_path=0.4)


@pytest.mark.parametrize("version", [1, 2])
def test_there_are_no_batch_statistics(version):
    variables = jax.eval_shape(
        of_version(version).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    assert set(variables) == {"params"}
    attention = variables["params"]["stage2_1"]["attention"]
    parts = {"query", "key", "value", "out", "position"}
    assert set(attention) == parts | ({"logit_scale"} if version == 2 else set())
    assert ("bias" in attention["key"]) == (version == 1)


def test_stages_and_the_rates_of_their_blocks():
    blocks = {}

    def note(method, args, kwargs, context):
        if isinstance(context.module, Block):
            blocks[context.module.name] = context.module
        return method(*args, **kwargs)

    images = jax.random.normal(jax.random.key(0), (1, 32, 64, 3))
    with nn.intercept_methods(note):
        key = jax.random.key(1, impl="rbg")
        maps, _ = jax.jit(of_version(1).init_with_output)(key, images)
    assert [x.shape for x in maps] == [(1, 8, 16, 4), (1, 4, 8, 8), (1, 2, 4, 16), (1, 1, 2, 32)]
    np.testing.assert_allclose(maps[-1].mean(axis=-1), 0, atol=1e-6)
    assert abs(maps[2].mean(axis=-1)).max() > 1e-3
    assert list(blocks) == ["stage1_0", "stage2_0", "stage2_1", "stage3_0", "stage4_0"]
    rates = [block.drop_rate for block in blocks.values()]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-12)
    assert [block.is_shifted for block in blocks.values()] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("shape", "window", "shift", "padded"),
    [
        ((8, 12), (4, 4), (2, 2), (8, 12)),
        ((7, 9), (4, 4), (2, 2), (8, 12)),
        ((4, 9), (4, 4), (0, 2), (4, 12)),  # no longer than a window
        ((3, 2), (3, 2), (0, 0), (3, 2)),
    ],
)
def test_a_map_is_cut_into_windows_and_joined_again(shape, window, shift, padded):
    cut = Cut.of(shape, 4, True)
    assert (cut.window, cut.shift, cut.padded) == (window, shift, padded)
    assert Cut.of(shape, 4, False) == Cut(shape, window, (0, 0))
    x = jnp.arange(1.0, 2 * shape[0] * shape[1] * 3 + 1).reshape(2, *shape, 3)
    windows = cut.split(x)
    count = padded[0] * padded[1] // (window[0] * window[1])
    assert windows.shape == (2, count, window[0] * window[1], 3)
    np.testing.assert_array_equal(windows[1, 0, 0], x[1, shift[0], shift[1]])
    np.testing.assert_array_equal(cut.join(windows), x)
    assert (windows == 0).sum() == 6 * (padded[0] * padded[1] - shape[0] * shape[1])


def test_positions_attend_to_those_that_were_near_before_the_shift():
    """Told pair by pair: in a window, and in the map that wraps round not apart at its edges."""
    cut = Cut.of((7, 9), 4, True)
    rows, columns = cut.padded
    places = np.stack(np.indices((rows, columns)), axis=-1)
    rolled = np.roll(places, (-2, -2), (0, 1))
    windows = rolled.reshape(2, 4, 3, 4, 2).swapaxes(1, 2).reshape(6, 16, 2)
    apart = abs(windows[:, :, None] - windows[:, None]).max(axis=-1)
    np.testing.assert_array_equal(cut.mask(), np.where(apart < 4, 0, -100))
    assert not Cut.of((7, 9), 4, False).mask().any()


def test_distances_in_a_window_cut_short_are_those_of_a_whole_one():
    table = np.arange(49).reshape(7, 7)  # of -3 to 3 rows and columns
    index = distance_index((2, 3), 4)
    assert index.shape == (6, 6)
    assert (index.diagonal() == table[3, 3]).all()
    assert index[0, 5] == table[3 - 1, 3 - 2]  # the first position, and a key below and right of it
    assert index[5, 0] == table[3 + 1, 3 + 2]
    assert index[2, 3] == table[3 - 1, 3 + 2]


def test_a_smaller_window_has_the_same_biases():
    for version in (1, 2):
        bias = PositionBias(3, 4, version)
        variables = bias.init(jax.random.key(0), (4, 4))
        whole = bias.apply(variables, (4, 4)).reshape(3, 4, 4, 4, 4)
        part = bias.apply(variables, (2, 3)).reshape(3, 2, 3, 2, 3)
        np.testing.assert_allclose(part, whole[:, :2, :3, :2, :3], rtol=1e-6)
        assert len(np.unique(np.asarray(whole[0]).round(6))) > 20


def test_what_has_no_direction_has_a_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()


@pytest.mark.parametrize("version", [1, 2])
def test_an_odd_map_is_padded(version):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    down = Downsample(version)
    y, variables = down.init_with_output(jax.random.key(1), x, False, None)
    assert y.shape == (2, 2, 3, 8)
    wide = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_array_equal(down.apply(variables, wide, False, None), y)


@pytest.mark.parametrize("version", [1, 2])
def test_every_parameter_learns(version):
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 8))
    block = Block(2, 3, version, True)
    variables = jax.jit(block.init, static_argnums=2)(jax.random.key(1), x, False, None)
    wanted = jax.random.normal(jax.random.key(2), x.shape)
    loss = jax.grad(lambda v: jnp.vdot(block.apply(v, x, False, None), wanted))
    gradients = jax.jit(loss)(variables)
    for path, gradient in flatten_dict(gradients["params"], sep="/").items():
        assert np.isfinite(gradient).all(), path
        # What is added to all keys alike changes no softmax.
        assert gradient.any() or path.endswith("key/bias"), path


@pytest.mark.parametrize("version", [1, 2])
def test_scores_are_float32_in_a_model_of_bfloat16(version):
    backbone = Swin(TINY._replace(version=version), 0.125, jnp.bfloat16)
    images = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    program = str(jax.make_jaxpr(backbone.apply)(variables, images))
    exponentials = [line for line in program.splitlines() if "= exp " in line]
    assert exponentials and all("f32[" in line for line in exponentials)


@pytest.mark.parametrize("name", ["mcar", "msrn", "pooled", "csra", "ml_decoder", "query2label"])
def test_every_model_runs_on_it(monkeypatch, name):
    size = Size((1, 1, 1, 1), (1, 2, 4, 8), (4, 4, 4, 4), 2)
    monkeypatch.setitem(swin.SIZES, "swinv2_tiny", size)
    config = default_config().model
    config.update(name=name, backbone="swinv2_tiny", width=0.25, drop_path=0.5)
    config.update(pool_ratio=0.5, head_width=24)
    labels = {"word_vectors": np.eye(4, dtype=np.float32), "attention_mask": np.eye(4, dtype=bool)}
    model = create_model(config, 4, **labels if name == "msrn" else {})
    images = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs = jax.eval_shape(model.apply, variables, images)
    assert outputs["logits"].shape == (2, 4)
    assert outputs["logits"].dtype == jnp.float32

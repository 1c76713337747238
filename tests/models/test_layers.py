"""Batch normalisation as PyTorch trains it, checked against its definition in NumPy float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.models.layers import (
    ConvBatchNorm,
    LayerNorm,
    batch_statistics,
    deal_rows,
    drop_path,
    members_of_groups,
)

pytestmark = pytest.mark.numerical


@partial(jax.jit, static_argnums=0)
def train(module, variables, x, mask=None):
    """Outputs and updates, compiled whole, which is sooner done than for every operation."""
    return module.apply(variables, x, True, mask, mutable=["batch_stats"])


@pytest.fixture
def layer():
    module = ConvBatchNorm(features=4, size=1)
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (5, 3, 2, 6))
    variables = module.init(jax.random.key(1), x)
    stats = {"mean": jnp.arange(4.0), "var": 1 + jnp.arange(4.0)}
    params = {**variables["params"], "scale": jnp.array([0.5, 1, 2, 3.0]), "bias": jnp.arange(4.0)}
    return module, {"params": params, "batch_stats": stats}, x


def convolved(variables, x):
    return np.asarray(x, np.float64) @ np.asarray(variables["params"]["kernel"][0, 0], np.float64)


def normalised(variables, y, mean, var):
    scale, bias = (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    return (y - np.asarray(mean)) / np.sqrt(var + 1e-5) * scale + bias


def test_training_normalises_by_the_batch_and_follows_with_the_unbiased_variance(layer):
    module, variables, x = layer
    out, updates = train(module, variables, x)
    y = convolved(variables, x)
    flat = y.reshape(-1, 4)
    np.testing.assert_allclose(
        out, normalised(variables, y, flat.mean(0), flat.var(0)), rtol=1e-4, atol=1e-4
    )
    stats = updates["batch_stats"]
    old = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old["mean"] + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        stats["var"], 0.9 * old["var"] + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )


def test_initialising_in_training_moves_no_statistics(layer):
    module, _, x = layer
    stats = module.init(jax.random.key(0), x, train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


def test_where_nothing_is_real_everything_stays_finite(layer):
    """A batch or a group of padding alone, and a single value, which has no variance."""
    module, variables, x = layer
    batch = jnp.concatenate([x, x[:1]])
    for groups, mask in ((1, jnp.zeros(6, bool)), (2, jnp.arange(6) >= 3), (3, jnp.arange(6) < 2)):
        members = members_of_groups(mask, 6, groups)
        mean, var, _ = batch_statistics(batch, members, jnp.full(6, 7.0), jnp.full(6, 3.0))
        of_nothing = ~np.asarray(members).any(axis=1)
        assert of_nothing.any() or groups == 2
        np.testing.assert_array_equal(mean[of_nothing], 7)
        np.testing.assert_array_equal(var[of_nothing], 3)
        out, updates = train(module.clone(bn_groups=groups), variables, batch, mask)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, updates)))
        if not mask.any():
            jax.tree.map(
                np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"]
            )
    _, updates = train(module, variables, x[:1, :1, :1])
    np.testing.assert_allclose(
        updates["batch_stats"]["var"], 0.9 * variables["batch_stats"]["var"], rtol=1e-6
    )


def test_inference_uses_the_running_statistics(layer):
    module, variables, x = layer
    stats = variables["batch_stats"]
    expected = normalised(variables, convolved(variables, x), stats["mean"], stats["var"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_outputs_nor_statistics_nor_gradients(layer):
    module, variables, x = layer
    padded = jnp.concatenate([x, jnp.full_like(x[:3], 1e3)])
    mask = jnp.arange(8) < 5

    def loss(params, images, mask):
        out, updates = train(module, {**variables, "params": params}, images, mask)
        return jnp.sum(jnp.sin(out[:5])), updates

    gradient_of = jax.value_and_grad(loss, has_aux=True)
    plain = gradient_of(variables["params"], x, None)
    masked = gradient_of(variables["params"], padded, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, masked)


@pytest.mark.parametrize("mean, running", [(1000, 999), (3, 0), (30, 0)])
def test_statistics_lose_the_square_of_the_distance_to_the_running_mean(mean, running):
    """A large mean loses nothing near the running one; from elsewhere, so many roundings."""
    x = mean + jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    members = members_of_groups(None, 64, 1)
    _, var, _ = batch_statistics(x, members, jnp.full(1, float(running)), jnp.ones(1))
    # 16 values are summed and then 64 rows, and the mean of the squares is rounded with each.
    roundings = 80 * (1 + (mean - running) ** 2)
    bound = roundings * np.finfo(np.float32).eps
    np.testing.assert_allclose(var[0, 0], np.asarray(x, np.float64).var(), atol=bound, rtol=0)


def test_statistics_do_not_look_at_padding(layer):
    """Not even where it is not finite."""
    x = layer[2]
    padded = jnp.concatenate([x, jnp.full_like(x[:3], jnp.inf), jnp.full_like(x[:1], jnp.nan)])
    running = jnp.zeros(6), jnp.ones(6)
    found = batch_statistics(padded, members_of_groups(jnp.arange(9) < 5, 9, 2), *running)
    expected = batch_statistics(x, members_of_groups(None, 5, 2), *running)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_rows_are_dealt_as_to_replicas():
    """ceil(N / G) of the real ones to every group, and to the last what is left, or nothing."""
    for groups, dealt in {1: [0] * 5, 2: [0, 0, 0, 1, 1], 4: [0, 0, 1, 1, 2], 8: range(5)}.items():
        got = deal_rows(jnp.arange(8) < 5, groups)
        np.testing.assert_array_equal(got, [*dealt, -1, -1, -1])
    np.testing.assert_array_equal(
        deal_rows(jnp.array([False, True, True, False, True]), 2), [-1, 0, 0, -1, 1]
    )
    np.testing.assert_array_equal(deal_rows(jnp.zeros(3, bool), 2), -1)


def test_groups_of_the_batch_are_normalised_apart_and_the_first_moves_the_statistics(layer):
    """As replicas of PyTorch: each sees its rows alone, and what is saved is the first one's."""
    module, variables, x = layer
    x = jnp.concatenate([x, x[:1] + 1])
    out, updates = train(module.clone(bn_groups=3), variables, x)
    alone = [train(module, variables, x[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(out, jnp.concatenate([y for y, _ in alone]), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, alone[0][1])


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_share_the_real_rows_whatever_padding_holds(layer, groups):
    """With every remainder, each group as if it were alone; and no gradient is not finite."""
    module, variables, x = layer
    x = jax.random.normal(jax.random.key(2), (8, 3, 2, 6))
    grouped = module.clone(bn_groups=groups)

    @jax.jit
    @jax.grad
    def gradient_of(params, images, mask):
        out, _ = train(grouped, {**variables, "params": params}, images, mask)
        return jnp.sum(jnp.where(mask[:, None, None, None], jnp.sin(out), 0))

    for real in range(9):
        mask = jnp.arange(8) < real
        images = jnp.where(mask[:, None, None, None], x, 1e3)
        out, updates = train(grouped, variables, images, mask)
        share = max(-(-real // groups), 1)
        for start in range(0, real, share):
            rows = slice(start, min(start + share, real))
            alone, moved = train(module, variables, x[rows])
            np.testing.assert_allclose(out[rows], alone, rtol=1e-4, atol=1e-4)
            if start == 0:
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, moved
                )
        gradient = gradient_of(variables["params"], images, mask)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradient)))


def test_in_bfloat16_statistics_are_float32(layer):
    """A variance that bfloat16, with three digits, could not tell from zero beside its mean."""
    module, variables, x = layer
    # Numbers that bfloat16 has, so that their products are exact: it rounds what they sum to, and
    # that once it is normalised, each by at most 2^-8 of it.
    x, variables["params"]["kernel"] = (
        array.astype(jnp.bfloat16).astype(jnp.float32)
        for array in (x, variables["params"]["kernel"])
    )
    out, updates = train(module.clone(dtype=jnp.bfloat16), variables, x)
    assert out.dtype == jnp.bfloat16
    expected, exact = train(module, variables, x)
    y = convolved(variables, x).reshape(-1, 4)
    rounding, deviation = 2**-8 * np.abs(y).max(axis=0), y.std(axis=0)
    # Of a value that is normalised: its own rounding, the mean's, and the deviation's times it.
    distances = 2 + np.abs(y - y.mean(axis=0)) / deviation
    bound = np.asarray(variables["params"]["scale"]) * rounding / deviation * distances
    bound += 2**-8 * np.abs(expected.reshape(-1, 4)) + 1e-4  # and float32's
    assert np.all(np.abs(out.astype(jnp.float32) - expected).reshape(-1, 4) < bound)
    shares = {"mean": rounding, "var": (2 * deviation + rounding) * rounding}
    for name, lost in shares.items():
        moved, wanted = (stats["batch_stats"][name] for stats in (updates, exact))
        assert moved.dtype == jnp.float32
        assert np.all(np.abs(moved - wanted) < 0.11 * lost)  # a tenth is new, and unbiased
    half = (100 + jax.random.normal(jax.random.key(3), (8, 8, 8, 1))).astype(jnp.bfloat16)
    members = members_of_groups(None, 8, 1)
    _, var, _ = batch_statistics(half, members, jnp.full(1, 100.0), jnp.ones(1))
    np.testing.assert_allclose(var[0], np.asarray(half, np.float64).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_position_is_normalised_by_itself(dtype):
    """In float32, whatever comes in: a mean that is far from 0 costs nothing of the variance."""
    x = (100 + jax.random.normal(jax.random.key(0), (2, 3, 64))).astype(dtype)
    params = {"scale": jnp.linspace(0.5, 2, 64), "bias": jnp.linspace(-1, 1, 64)}
    given = np.asarray(x, np.float64)
    mean, var = given.mean(-1, keepdims=True), given.var(-1, keepdims=True)
    expected = (given - mean) / np.sqrt(var + 1e-6) * np.asarray(params["scale"]) + (
        np.asarray(params["bias"])
    )
    got = jax.jit(LayerNorm(dtype).apply)({"params": params}, x)
    assert got.dtype == dtype
    # The mean of 64 values about 100 is rounded by up to 64 x 100 epsilon / 2, where they deviate
    # by 1; results up to 10 are rounded to bfloat16 by at most 10 epsilon / 2.
    rounding = 64 * 100 * 2.0**-24 * 2 + (10 * 2.0**-9 if dtype == jnp.bfloat16 else 0)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0, atol=rounding)


class Branch(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        return drop_path(self, x, self.rate)


def test_a_branch_is_dropped_for_some_rows_and_scaled_up_for_the_rest():
    x = 1 + jax.random.uniform(jax.random.key(0), (1000, 2, 2, 3))
    got = Branch(0.25).apply({}, x, rngs={"dropout": jax.random.key(1)})
    is_kept = np.asarray(got).any(axis=(1, 2, 3))
    np.testing.assert_allclose(got[is_kept], x[is_kept] / 0.75, rtol=1e-6)
    assert not np.any(got[~is_kept])
    # Of 1,000 rows 750 are kept, give or take five standard deviations of 13.7.
    assert abs(is_kept.sum() - 750) < 69
    np.testing.assert_array_equal(Branch(0.25).apply({}, x), x)

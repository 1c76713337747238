"""A step in parts, with recomputation and in bfloat16 beside the plain step in float32."""

import collections
from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.data import pipeline, sources
from mlic_jax.data.options import DataOptions
from mlic_jax.errors import UsageError
from mlic_jax.models import create_model, spread
from mlic_jax.models.heads.pooled import Pooled
from mlic_jax.models.inputs import InputOptions, normalise
from mlic_jax.models.layers import ConvBatchNorm
from mlic_jax.models.ops.convolution import plain
from mlic_jax.runtime import devices
from mlic_jax.train.loop import train, training_batches
from mlic_jax.train.optim import OptimOptions, create_optimizer, create_schedule
from mlic_jax.train.options import TrainOptions
from mlic_jax.train.start import initial_variables
from mlic_jax.train.step import (
    TrainState,
    accumulate,
    check_batch_size,
    groups_in_parts,
    make_train_step,
)


@pytest.fixture(scope="module")
def batch(make_config):
    """Eight rows, of which the last three are padding."""
    split = sources.open_splits(DataOptions.of(make_config().data))["train"]
    batches = pipeline.batches(split, batch_size=8, image_size=64, shuffle=False)
    batch = next(batches)
    batches.close()
    batch["labels"][5:], batch["mask"][5:] = -1, False
    batch["labels"][1, :4] = 0  # the parts of a batch do not weigh the same
    return batch


@pytest.fixture(scope="module")
def take_step(make_config, batch):
    """(options by name) -> (how the parameters move, the new state, metrics) of one step."""

    @cache
    def take(
        freeze_features=False,
        augmented=False,
        first_step=0,
        labels=np.copy,
        loss="bce",
        **options,
    ):
        config = make_config()
        config.loss.name = loss
        if not augmented:
            config.augment.flip, config.augment.jitter = False, 0.0
        config.model.name, config.model.pooling = "pooled", "avg"
        config.loss.label_policy = "ignore"
        if freeze_features:  # which compiles in a fraction of the time
            config.freeze_statistics, config.optim.multipliers.features = True, 0.0
            config.optim.weight_decay = 0.0
        for name, value in options.items():
            groups = (config, config.model, config.loss)
            next(group for group in groups if name in group)[name] = value
        model = create_model(config.model, batch["labels"].shape[1])
        taken = TrainOptions.of(config)
        variables = initial_variables(model, taken)
        schedule = create_schedule(taken.optim, 3, 2)
        optimizer = create_optimizer(taken.optim, variables["params"], schedule)
        copies = jax.tree.map(jnp.copy, variables)
        state = TrainState(
            jnp.int32(first_step), **copies, opt_state=optimizer.init(copies["params"])
        )
        step = make_train_step(model, optimizer, schedule, taken)
        rows = batch | {"labels": labels(batch["labels"])}
        state, metrics = step(state, jax.tree.map(jnp.asarray, rows), jax.random.key(0))
        moves = jax.tree.map(jnp.subtract, state.params, variables["params"])
        return moves, state, metrics

    return take


def relative_difference(tree, expected):
    """Of all leaves together, by the norm."""
    flat, wanted = (
        np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(t)])
        for t in (tree, expected)
    )
    return np.linalg.norm(flat - wanted) / np.linalg.norm(wanted)


def test_parts_of_a_batch_make_the_step_of_the_whole(take_step):
    """With statistics that do not depend on the batch; unknown labels and padding are unequal."""
    whole, _, of_whole = take_step(freeze_features=True)
    moves, _, metrics = take_step(freeze_features=True, accumulation=4)
    assert relative_difference(moves["convclass"], whole["convclass"]) < 1e-5
    for name, value in of_whole.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_every_step_draws_its_own_augmentation(take_step):
    """And the same one whenever it is done."""
    _, _, plain = take_step(freeze_features=True)
    losses = [
        take_step(freeze_features=True, augmented=True, first_step=step)[2]["loss"]
        for step in (0, 1)
    ]
    assert len({float(loss) for loss in (*losses, plain["loss"])}) == 3


def test_the_norm_is_that_of_the_gradient_that_is_used(take_step, config):
    """Of what is frozen there is none. Without decay the first step is rate times gradient."""
    moves, _, metrics = take_step(freeze_features=True)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(moves["features"]))
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moves["convclass"])))
    rate = create_schedule(OptimOptions.of(config.optim), 3, 2)(0)
    np.testing.assert_allclose(metrics["gradient_norm"], length / rate, rtol=1e-5)


class Deep(nn.Module):
    """A backbone of as many layers as make rows without statistics grow out of float32."""

    layer: Callable = ConvBatchNorm

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = x[:, ::32, ::32]
        for _ in range(20):
            x = self.layer(4)(x, train, mask)
        return (x,)


@pytest.mark.parametrize("groups, parts", [(1, 2), (2, 1), (2, 4), (4, 2), (8, 1), (1, 8)])
def test_a_batch_that_is_partly_padding_makes_a_finite_step(batch, config, groups, parts):
    """Every number of images that an epoch can leave for its last batch, each of which counts."""
    config.accumulation, config.model.bn_groups = parts, groups
    config.augment.flip, config.augment.jitter = False, 0.0
    layer = partial(ConvBatchNorm, bn_groups=groups)
    model = Pooled(Deep(layer), batch["labels"].shape[1], "avg", 4, 0.5, "exact")
    options = TrainOptions.of(config)
    variables = initial_variables(model, options)
    schedule = create_schedule(options.optim, 3, 2)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    step = make_train_step(model, optimizer, schedule, options)
    losses = []
    for real in range(1, 9):
        copies = jax.tree.map(jnp.copy, variables)
        state = TrainState(jnp.int32(0), **copies, opt_state=optimizer.init(copies["params"]))
        rows = batch | {"mask": np.arange(8) < real}
        state, metrics = step(state, jax.tree.map(jnp.asarray, rows), jax.random.key(0))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 8


def sums_of_devices(jaxpr, in_loop=False):
    """(size of an array that devices add up, whether a loop does it) for every such array."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            yield from ((variable.aval.size, in_loop) for variable in equation.invars)
        loop = in_loop or equation.primitive.name in ("scan", "while")
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sums_of_devices(inner, loop)


@pytest.mark.parametrize("parts", [1, 2])
def test_devices_exchange_the_gradient_once_and_statistics_once_a_layer_and_way(config, parts):
    config.accumulation, config.batch_size = parts, 16
    model = spread(Pooled(Deep(), 12, "avg", 4, 0.5, "exact"), devices.ROWS)
    options = TrainOptions.of(config)
    variables = initial_variables(Pooled(Deep(), 12, "avg", 4, 0.5, "exact"), options)
    schedule = create_schedule(options.optim, 3, 2)
    optimizer = create_optimizer(options.optim, variables["params"], schedule)
    state = TrainState(jnp.int32(0), **variables, opt_state=optimizer.init(variables["params"]))
    mesh = devices.create_mesh()
    shardings = devices.lying(state, mesh)
    step = make_train_step(model, optimizer, schedule, options, mesh, shardings)
    traced = step.trace(state, devices.abstract_batch(mesh, 16, 64, 12), jax.random.key(0))
    found = collections.Counter(sums_of_devices(traced.jaxpr.jaxpr))
    of_statistics = (2 * 4 + 1, parts > 1)  # sums, squares and the number of values of 4 channels
    assert found.pop(of_statistics) == 2 * 20  # of 20 layers, forwards and backwards
    assert not any(in_loop for _, in_loop in found)
    gradient = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(size * count for (size, _), count in found.items()) == gradient + 1  # and the loss


def test_parts_are_dealt_out_in_turns_and_add_up():
    """Six rows in three parts: 0 and 3, 1 and 4, 2 and 5."""
    rows = {"images": jnp.arange(6.0)}

    def gradient_of(batch_stats, part):
        total = jnp.sum(part["images"])
        return 2 * total, ({"loss": total}, 10 * batch_stats + total, -part["images"])

    batch_stats, (metrics, gradient), of_rows = accumulate(gradient_of, 3, jnp.float32(0), rows)
    assert metrics["loss"] == 15 and gradient == 30
    assert batch_stats == 100 * 3 + 10 * 5 + 7
    np.testing.assert_array_equal(of_rows, -rows["images"])


def test_a_part_deals_its_own_rows_to_the_groups():
    """Of eight rows, three of them padding, part 0 has 0, 2 and 4, and part 1 has 1 and 3."""
    dealt = groups_in_parts(jnp.arange(8) < 5, parts=2, groups=2)
    np.testing.assert_array_equal(dealt, [0, 0, 0, 1, 1, -1, -1, -1])


def test_where_nothing_is_known_nothing_moves(take_step):
    _, _, metrics = take_step(freeze_features=True, labels=np.zeros_like)
    assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0


def test_targets_are_smoothed_as_the_configuration_says(take_step):
    """The loss is linear in them: of the labels nine tenths, and a tenth of their opposites."""
    losses = [
        take_step(freeze_features=True, **options)[2]["loss"]
        for options in ({}, {"labels": np.negative}, {"label_smoothing": 0.2})
    ]
    np.testing.assert_allclose(losses[2], 0.9 * losses[0] + 0.1 * losses[1], rtol=1e-5)


def test_batches_of_training_are_as_the_configuration_says(config):
    config.seed, config.data.image_size = 3, 32
    config.data.train_crop, config.data.crop_scale = "random_resized_crop", (0.3, 0.4)
    options = TrainOptions.of(config)
    splits = sources.open_splits(options.data)
    usual = {"batch_size": 8, "image_size": 32, "seed": 3, "shuffle": True, "epochs": 2}
    crops = {"train_crop": "random_resized_crop", "crop_scale": (0.3, 0.4)}
    expected = list(pipeline.batches(splits["train"], first_step=2, **usual, **crops))
    got = list(training_batches(splits["train"], options, first_step=2))
    assert len(got) == len(expected) == 4
    for batch, wanted in zip(got, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, wanted)


def test_training_keeps_pixels_as_the_configuration_says(config, capsys):
    config.data.cache, config.data.cache_gib = "pixels", 1e-9
    options = TrainOptions.of(config)
    split = sources.open_splits(options.data)["train"]
    training_batches(split, options, first_step=0).close()
    assert "tiny_scenes train, 64 px) are not kept" in (line := capsys.readouterr().out)
    assert line.endswith("and data.cache_gib is 1e-09\n")


def test_statistics_move_once_for_every_part_that_is_not_padding(take_step, batch):
    """Rows are dealt out in turns: of eight parts the last three hold nothing but padding."""
    _, state, metrics = take_step(accumulation=8)
    assert np.isfinite(metrics["loss"])
    _, untouched, _ = take_step(freeze_features=True)
    kernel = untouched.params["features"]["stem"]["kernel"]
    maps = plain(
        normalise(batch["image"][:5], InputOptions.of(default_config().augment)), kernel, 2
    )
    mean, var = np.zeros(kernel.shape[-1]), np.ones(kernel.shape[-1])
    for image in np.asarray(maps, np.float64):
        values = image.reshape(-1, image.shape[-1])
        mean = 0.9 * mean + 0.1 * values.mean(0)
        var = 0.9 * var + 0.1 * values.var(0, ddof=1)
    np.testing.assert_allclose(state.batch_stats["features"]["stem"]["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(state.batch_stats["features"]["stem"]["var"], var, rtol=1e-4)


def test_recomputation_changes_nothing_but_memory(take_step):
    moves, state, metrics = take_step()
    again, other, other_metrics = take_step(remat="block")
    assert relative_difference(again, moves) < 1e-5
    assert relative_difference(other.batch_stats, state.batch_stats) < 1e-6
    np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-6)


def test_bfloat16_is_near_float32_and_keeps_float32_where_it_matters(take_step):
    moves, _, metrics = take_step()
    half, state, of_half = take_step(dtype="bfloat16")
    # A norm over thousands of values and their roundings to 8 bits, 0.04 of it whatever they are.
    assert 1e-4 < relative_difference(half, moves) < 0.1
    np.testing.assert_allclose(of_half["loss"], metrics["loss"], rtol=1e-2)
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_parts_must_divide_the_batch_of_each_device_and_groups_the_parts(config, tmp_path):
    config.accumulation = 3
    with pytest.raises(UsageError, match="8 devices, times the 3 parts of"):
        train(config, tmp_path)
    mesh = devices.create_mesh()
    config.batch_size = 48
    for config.model.bn_groups in (1, 2, 16):
        check_batch_size(TrainOptions.of(config), mesh)
    config.model.bn_groups = 5
    with pytest.raises(UsageError, match="bn_groups is 5, which does not divide the 16 images"):
        check_batch_size(TrainOptions.of(config), mesh)


def test_a_sum_is_the_mean_times_the_known_labels(take_step, batch):
    _, _, mean = take_step(freeze_features=True)
    known = np.count_nonzero((batch["labels"] != 0) & batch["mask"][:, None])
    for parts in (1, 4):
        _, _, total = take_step(freeze_features=True, reduction="sum", accumulation=parts)
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose(total[name], known * float(mean[name]), rtol=1e-5)


def test_costs_follow_the_epoch(take_step):
    """With one step an epoch the second step is of epoch 1, where SPLC corrects what is likely."""
    first, second = (
        take_step(freeze_features=True, tau=1e-6, first_step=step, loss="splc")[2]
        for step in (0, 1)
    )
    assert float(second["loss"]) != pytest.approx(float(first["loss"]), rel=0.01)

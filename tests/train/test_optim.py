"""The optimiser against its update written out in NumPy, and the schedules against their tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.train.optim import (
    OptimOptions,
    create_optimizer,
    create_schedule,
    group_multipliers,
    rate_scale,
)


@pytest.fixture
def settings():
    return OptimOptions.of(default_config().optim)


def test_sgd_adds_decay_then_momentum_then_the_rate_of_the_group(settings):
    settings = replace(settings, weight_decay=0.1, learning_rate=0.5, milestones=(2,))
    params = {"features": {"bias": jnp.array([1.0])}, "convclass": {"kernel": jnp.array([-2.0])}}
    optimizer = create_optimizer(settings, params, create_schedule(settings, 1, 4))
    state = optimizer.init(params)
    expected = {"features": 1.0, "convclass": -2.0}
    buffers = dict.fromkeys(expected, 0.0)
    for step, gradient in enumerate((0.3, -0.2, 0.7, 0.1)):
        gradients = {
            "features": {"bias": jnp.array([gradient])},
            "convclass": {"kernel": jnp.array([gradient])},
        }
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.5 if step < 2 else 0.05
        for name, multiplier in (("features", 0.1), ("convclass", 1.0)):
            buffers[name] = 0.9 * buffers[name] + gradient + 0.1 * expected[name]
            expected[name] -= rate * multiplier * buffers[name]
        np.testing.assert_allclose(params["features"]["bias"], expected["features"], rtol=1e-5)
        np.testing.assert_allclose(params["convclass"]["kernel"], expected["convclass"], rtol=1e-5)


def test_adamw_decouples_the_decay(settings):
    settings = replace(settings, name="adamw", weight_decay=0.1)
    params = {"features": {"w": jnp.array([2.0])}, "convclass": {"w": jnp.array([2.0])}}
    optimizer = create_optimizer(settings, params, lambda _: 0.5)
    gradients = {name: {"w": jnp.array([1e-3])} for name in params}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam takes a float to an integer power
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # The first Adam step is the sign of the gradient; the decay is 0.1 x 2 beside it.
    np.testing.assert_allclose(updates["convclass"]["w"], -0.5 * (1 + 0.2), rtol=1e-3)
    np.testing.assert_allclose(updates["features"]["w"], -0.05 * (1 + 0.2), rtol=1e-3)


def test_groups_must_be_the_modules_of_the_model(settings):
    with pytest.raises(UsageError, match="the model has backbone, convclass"):
        create_optimizer(settings, {"backbone": {}, "convclass": {}}, lambda _: 0.1)


def test_the_rest_is_a_group_and_zero_freezes(settings):
    settings = replace(settings, multipliers={"features": 0.0, "rest": 0.5})
    params = {name: {"w": jnp.array([2.0])} for name in ("features", "fc1", "fc2")}
    assert group_multipliers(settings, params) == {"features": 0.0, "fc1": 0.5, "fc2": 0.5}
    optimizer = create_optimizer(settings, params, lambda _: 0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["features"]["w"] == 0  # not even decay
    np.testing.assert_allclose(updates["fc2"]["w"], -0.05 * 2 * (1 + 1e-4), rtol=1e-6)
    settings = replace(settings, multipliers={"features": 0.0})
    with pytest.raises(UsageError, match="the model has fc1, fc2, features"):
        group_multipliers(settings, params)


def rates(settings, epochs, steps_per_epoch=10):
    schedule = create_schedule(settings, steps_per_epoch, epochs)
    return np.array([schedule(step) for step in range(epochs * steps_per_epoch)])


def test_step_schedule_drops_at_the_first_step_of_its_epochs(settings):
    settings = replace(settings, learning_rate=1.0, milestones=(2, 3))
    expected = np.repeat([1, 1, 0.1, 0.01], 10)
    np.testing.assert_allclose(rates(settings, 4), expected, rtol=1e-5)


def test_warmup_comes_before_and_milestones_stay_at_their_epochs(settings):
    settings = replace(settings, learning_rate=1.0, milestones=(2,), warmup_epochs=0.5)
    got = rates(settings, 3)
    np.testing.assert_allclose(got[:6], [0.2, 0.36, 0.52, 0.68, 0.84, 1.0], rtol=1e-5)
    assert got[19] == 1 and np.isclose(got[20], 0.1)


def test_cosine_ends_at_zero(settings):
    settings = replace(settings, learning_rate=2.0, schedule="cosine", warmup_epochs=1.0)
    got = rates(settings, 5)
    assert np.argmax(got) == 10 and got.max() == 2
    assert np.all(np.diff(got[10:]) < 0)
    assert got[-1] < 0.01


def test_cosine_ends_at_its_floor(settings):
    settings = replace(settings, learning_rate=2.0, schedule="cosine", floor=0.1)
    got = rates(settings, 5)
    expected = 0.2 + (2.0 - 0.2) * (1 + np.cos(np.pi * np.arange(50) / 50)) / 2
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rates_follow_the_batch_as_the_rule_says(settings, schedule):
    settings = replace(settings, schedule=schedule, warmup_epochs=1.0, reference_batch=16)
    usual = rates(settings, 5)
    for scaling, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        settings = replace(settings, scaling=scaling)
        scaled = create_schedule(settings, 10, 5, rate_scale(settings, 64, 3))
        np.testing.assert_allclose([scaled(step) for step in range(50)], factor * usual, rtol=1e-6)


def test_the_rate_of_sgd_goes_with_the_classes_where_they_are_named(settings):
    settings = replace(settings, reference_batch=16, scaling="sqrt")
    assert rate_scale(settings, 64, 3) == 2
    settings = replace(settings, reference_classes=80)
    assert rate_scale(settings, 64, 80) == 2
    assert rate_scale(settings, 64, 3) == pytest.approx(2 * 3 / 80)
    settings = replace(settings, name="adamw")  # whose moves do not depend on the scale of the loss
    assert rate_scale(settings, 64, 3) == 2


def test_nesterov_looks_a_step_ahead(settings):
    """As PyTorch has it: the gradient, plus the momentum of what it has made of the buffer."""
    settings = replace(settings, nesterov=True, weight_decay=0.0, multipliers={"rest": 1.0})
    params = {"fc": {"w": jnp.array([1.0])}}
    optimizer = create_optimizer(settings, params, lambda _: 0.1)
    state, buffer = optimizer.init(params), 0.0
    for gradient in (0.3, -0.2, 0.7):
        updates, state = optimizer.update({"fc": {"w": jnp.array([gradient])}}, state, params)
        buffer = 0.9 * buffer + gradient
        np.testing.assert_allclose(updates["fc"]["w"], -0.1 * (gradient + 0.9 * buffer), rtol=1e-5)


def test_the_gradient_of_all_groups_together_is_clipped(settings):
    settings = replace(settings, multipliers={"features": 0.5, "rest": 1.0})
    settings = replace(settings, weight_decay=0.0, clip_norm=2.5)
    params = {"features": {"w": jnp.array([1.0])}, "fc": {"w": jnp.array([1.0])}}
    gradients = {"features": {"w": jnp.array([3.0])}, "fc": {"w": jnp.array([4.0])}}  # norm 5
    optimizer = create_optimizer(settings, params, lambda _: 0.1)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["features"]["w"], -0.05 * 1.5, rtol=1e-6)
    np.testing.assert_allclose(updates["fc"]["w"], -0.1 * 2.0, rtol=1e-6)

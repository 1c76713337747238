"""The optimiser against its update written out in NumPy, and the schedules against their tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlic_jax.config import default_config
from mlic_jax.errors import UsageError
from mlic_jax.models.backbones import vit
from mlic_jax.models.backbones.convnext import ConvNeXt, Size
from mlic_jax.models.backbones.mobilenet_v2 import MobileNetV2
from mlic_jax.models.backbones.resnet import ResNet
from mlic_jax.models.backbones.vit import ViT
from mlic_jax.train.optim import (
    OptimOptions,
    create_optimizer,
    create_schedule,
    group_multipliers,
    layer_multipliers,
    moved_average,
    rate_scale,
    without_biases_and_norms,
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


def test_adam_adds_the_decay_to_the_gradient(settings):
    """As torch.optim.Adam does: written out in float64, b1 0.9, b2 0.999, eps 1e-8."""
    settings = replace(settings, name="adam", weight_decay=0.1)
    params = {"features": {"w": jnp.array([2.0])}, "head": {"w": jnp.array([2.0])}}
    optimizer = create_optimizer(settings, params, lambda _: 0.5)
    state, expected, first, second = optimizer.init(params), 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.3, -0.2, 0.05), start=1):
        gradients = {name: {"w": jnp.array([gradient])} for name in params}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        decayed = gradient + 0.1 * expected
        first, second = 0.9 * first + 0.1 * decayed, 0.999 * second + 0.001 * decayed**2
        root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        expected -= 0.5 * first / (1 - 0.9**step) / root
        # 1 - 0.999^t loses a thousand roundings of float32 (6e-8 each), and steps are up to 0.5.
        np.testing.assert_allclose(params["head"]["w"], expected, rtol=1e-3)


def test_one_cycle_rises_to_a_fifth_and_falls_to_nothing(settings):
    """PyTorch's cosines between 1 / 25, 1 and 1 / 250,000 of the rate, in float64."""
    settings = replace(settings, learning_rate=2.0, schedule="one_cycle")
    steps, peak = np.arange(50.0), 10
    up = (1 - np.cos(np.pi * np.minimum(steps / peak, 1))) / 2
    down = (1 - np.cos(np.pi * np.maximum(steps - peak, 0) / (50 - peak))) / 2
    expected = 2 * np.where(steps < peak, 1 / 25 + (1 - 1 / 25) * up, 1 + (1 / 250_000 - 1) * down)
    got = rates(settings, 5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # ten roundings of 2
    assert np.argmax(got) == peak


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_run_may_go_through_a_share_of_a_schedule(settings, schedule):
    settings = replace(settings, schedule=schedule)
    half = rates(replace(settings, schedule_share=0.5), 4)
    np.testing.assert_array_equal(half, rates(settings, 8)[:40])


def test_biases_and_norms_may_be_left_out_of_the_decay(settings):
    params = {
        "features": {"conv": {"kernel": jnp.ones((1, 1, 3, 2)), "bias": jnp.ones(2)}},
        "head": {"query": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((2, 2))}},
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "stem": {"positions": jnp.ones((5, 3))},
    }
    decays = {
        "features": {"conv": {"kernel": True, "bias": False}},
        "head": {"query": {"kernel": True, "bias": False}},  # of attention, on two axes
        "norm": {"scale": False, "bias": False},
        "stem": {"positions": False},
    }
    assert without_biases_and_norms(params) == decays
    none = jax.tree.map(jnp.zeros_like, params)
    for name in ("sgd", "adam", "adamw"):
        settings = replace(settings, name=name, multipliers={"rest": 1.0}, weight_decay=0.1)
        for of_all in (True, False):
            settings = replace(settings, decay_biases_and_norms=of_all)
            optimizer = create_optimizer(settings, params, lambda _: 0.5)
            with jax.numpy_dtype_promotion("standard"):
                updates, _ = optimizer.update(none, optimizer.init(params), params)
            moved = jax.tree.map(lambda update: bool((update != 0).all()), updates)
            assert moved == (jax.tree.map(lambda _: True, decays) if of_all else decays)


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        (ResNet(18), {"stem": 0, "layer1_0": 1, "layer1_1": 1, "layer3_0": 3, "layer4_1": 4}),
        (
            MobileNetV2(0.125),
            {"stem": 0, "block1": 1, "block2": 2, "block4": 3, "block7": 4, "block11": 5}
            | {"block14": 6, "block16": 6, "block17": 7, "head": 8},
        ),
        (
            ConvNeXt(Size((1, 2, 1, 1), (4, 4, 4, 4), 1)),
            {"stem": 0, "stage1_0": 1, "downsample2": 2, "stage2_1": 2, "stage3_0": 3}
            | {"downsample4": 4, "stage4_0": 4, "norm": 4},
        ),
        (
            ViT(vit.Size(2, 8, 2, 16, vit.VIT)),
            {"stem": 0, "block0": 1, "block1": 2, "norm": 3},
        ),
    ],
)
def test_the_rate_of_a_stage_goes_with_its_depth(settings, backbone, stages):
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = {"features": shapes["params"], "fc": {"w": jnp.ones(1)}}
    settings = replace(settings, multipliers={"features": 0.5, "rest": 2.0})
    labels, multipliers = layer_multipliers(settings, params)
    assert multipliers == {"features": 0.5, "fc": 2.0}
    assert set(jax.tree.leaves(labels["features"])) == {"features"}
    labels, multipliers = layer_multipliers(
        replace(settings, layer_decay=0.5), params, backbone.stage_of
    )
    last = max(stages.values())
    assert set(jax.tree.leaves(labels)) == set(multipliers)
    expected = {f"features/{stage}": 0.5 * 0.5 ** (last - stage) for stage in range(last + 1)}
    assert multipliers == expected | {"fc": 2.0}
    for module, stage in stages.items():
        assert set(jax.tree.leaves(labels["features"][module])) == {f"features/{stage}"}


def test_a_backbone_without_stages_takes_no_rates_of_them(settings):
    with pytest.raises(UsageError, match=r"optim.layer_decay is 0.5, and .* `stage_of`"):
        layer_multipliers(replace(settings, layer_decay=0.5), {"features": {}})


def test_stages_move_at_their_rates_and_frozen_ones_not(settings):
    params = {"features": {"stem": {"w": jnp.ones(1)}, "layer1_0": {"w": jnp.ones(1)}}}
    ones = jax.tree.map(jnp.ones_like, params)
    settings = replace(settings, layer_decay=0.25, weight_decay=0.0, name="sgd")
    for multiplier in (1.0, 0.0):
        settings = replace(settings, multipliers={"features": multiplier})
        optimizer = create_optimizer(settings, params, lambda _: 0.5, ResNet.stage_of)
        updates, _ = optimizer.update(ones, optimizer.init(params), params)
        assert updates["features"]["stem"]["w"] == -0.125 * multiplier
        assert updates["features"]["layer1_0"]["w"] == -0.5 * multiplier


def test_an_average_forgets_where_it_started():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(200, 4)).astype(np.float32)
    average, expected = {"w": jnp.array(steps[0])}, steps[0].astype(float)
    move = jax.jit(moved_average, static_argnums=3)
    for t, values in enumerate(steps[1:]):
        average = move(average, {"w": jnp.array(values)}, jnp.int32(t), 0.9)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * values
        # Each step adds three roundings of numbers up to 4, and forgets a tenth of those before.
        np.testing.assert_allclose(average["w"], expected, rtol=0, atol=30 * 4 * 2**-24)


def test_what_does_not_move_is_its_own_average_to_the_bit():
    """A frozen backbone is known by the digest of its bytes, in which 0 is not -0."""
    weights = {"w": jnp.array([0.1, -0.0, 0.0, 1e-30], jnp.float32)}
    average = jax.jit(moved_average, static_argnums=3)(weights, weights, jnp.int32(3), 0.9997)
    assert np.asarray(average["w"]).tobytes() == np.asarray(weights["w"]).tobytes()

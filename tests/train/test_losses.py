"""The losses by their formula, and where their gradient must be exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import default_config
from mlic_jax.train.losses import (
    LossOptions,
    binary_cross_entropy,
    mean_loss,
    newly_present,
    smooth_targets,
    total_loss,
    two_stream_loss,
)

pytestmark = pytest.mark.numerical


def test_mean_over_what_is_known():
    logits = jnp.array([[2.0, -1.0], [0.5, 30.0]])
    targets = jnp.array([[True, False], [False, True]])
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    losses = -np.where(targets, np.log(p), np.log1p(-p))
    everything = jnp.ones_like(targets)
    np.testing.assert_allclose(
        binary_cross_entropy(logits, targets, everything), losses.mean(), rtol=1e-6
    )
    known = jnp.array([[True, True], [True, False]])
    value, gradient = jax.value_and_grad(binary_cross_entropy)(logits, targets, known)
    np.testing.assert_allclose(value, losses[known].mean(), rtol=1e-6)
    assert gradient[1, 1] == 0
    assert np.all(gradient[known] != 0)


def test_large_logits_and_nothing_known_stay_finite():
    logits = jnp.array([[1e4, -1e4]])
    targets = jnp.array([[False, True]])
    value, gradient = jax.value_and_grad(binary_cross_entropy)(
        logits, targets, jnp.ones_like(targets)
    )
    assert value == 1e4
    assert np.all(np.isfinite(gradient))
    assert binary_cross_entropy(logits, targets, jnp.zeros_like(targets)) == 0


def test_smoothed_targets_are_half_of_it_from_sure():
    """And their least loss is where the probability is the target."""
    present = jnp.array([[True, False]])
    targets = smooth_targets(present, 0.2)
    np.testing.assert_allclose(targets, [[0.9, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(smooth_targets(present, 0.0), [[1, 0]])
    known = jnp.ones((1, 2), bool)
    best = jnp.log(targets / (1 - targets))
    gradient = jax.grad(binary_cross_entropy)(best, targets, known)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_two_streams_add_up():
    outputs = {"global_logits": jnp.array([[1.0]]), "local_logits": jnp.array([[-2.0]])}
    yes = jnp.array([[True]])
    loss, parts = two_stream_loss(outputs, yes, yes)
    np.testing.assert_allclose(parts["loss_global"], np.log1p(np.exp(-1)), rtol=1e-6)
    np.testing.assert_allclose(parts["loss_local"], np.log1p(np.exp(2)), rtol=1e-6)
    assert loss == parts["loss_global"] + parts["loss_local"]


LOGITS = jnp.array([[0.5, -1.0], [2.0, 0.0]])
TARGETS = jnp.array([[True, False], [False, True]])
KNOWN = jnp.array([[True, True], [True, False]])


def test_total_loss_of_two_streams():
    outputs = {"logits": LOGITS, "global_logits": LOGITS - 1, "local_logits": LOGITS + 1}
    loss, parts = total_loss(outputs, TARGETS, KNOWN)
    assert (loss, parts) == two_stream_loss(outputs, TARGETS, KNOWN)
    assert set(parts) == {"loss_global", "loss_local"}


def test_total_loss_with_groups():
    outputs = {"logits": LOGITS, "group_loss": jnp.float32(0.25)}
    loss, parts = total_loss(outputs, TARGETS, KNOWN)
    of_labels = binary_cross_entropy(LOGITS, TARGETS, KNOWN)
    assert parts == {"loss_labels": of_labels, "loss_group": 0.25}
    assert loss == of_labels + 0.25


def test_total_loss_of_logits_alone():
    loss, parts = total_loss({"logits": LOGITS}, TARGETS, KNOWN)
    assert loss == binary_cross_entropy(LOGITS, TARGETS, KNOWN)
    assert parts == {}


def loss_options(**changed):
    config = default_config()
    config.loss.update(changed)
    return LossOptions.of(config.loss)


def mean_of(name, epoch=0, weights=None, logits=LOGITS, **changed):
    of_labels = mean_loss(loss_options(name=name, **changed), jnp.int32(epoch), weights)
    return float(of_labels(logits, TARGETS, KNOWN))


def by_hand(present, absent):
    """The mean over known labels of float64 costs `[B, C]`."""
    return np.where(np.asarray(TARGETS), present, absent)[np.asarray(KNOWN)].mean()


X = np.asarray(LOGITS, np.float64)
P = 1 / (1 + np.exp(-X))


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("bce", -np.log(P), -np.log(1 - P)),
        ("focal", -0.25 * (1 - P) ** 2 * np.log(P), -0.75 * P**2 * np.log(1 - P)),
        (
            "asl",
            -np.log(P),
            -(np.maximum(P - 0.05, 0) ** 4) * np.log(np.minimum(1 - P + 0.05, 1)),
        ),
        (
            "hill",
            (1 - 1 / (1 + np.exp(1 - X))) ** 2 * np.log1p(np.exp(1 - X)),
            (1.5 - P) * P**2,
        ),
        ("large_loss", -np.log(P), -np.log(1 - P)),
    ],
)
def test_every_loss_by_its_name(name, present, absent):
    np.testing.assert_allclose(mean_of(name), by_hand(present, absent), rtol=1e-5)


def test_splc_corrects_from_the_second_epoch_on():
    present = (1 - 1 / (1 + np.exp(1 - X))) ** 2 * np.log1p(np.exp(1 - X))
    absent = -np.log(1 - P)
    np.testing.assert_allclose(mean_of("splc", 0), by_hand(present, absent), rtol=1e-5)
    corrected = np.where(P > 0.6, present, absent)
    np.testing.assert_allclose(mean_of("splc", 1), by_hand(present, corrected), rtol=1e-5)
    assert mean_of("splc", 0) != pytest.approx(mean_of("splc", 1), rel=1e-3)


@pytest.mark.parametrize("large", ["reject", "correct"])
def test_the_largest_losses_are_given_up_more_with_every_epoch(large):
    logits = LOGITS.at[0, 0].set(-5)  # the costliest of all is present
    x = np.asarray(logits, np.float64)
    present, absent = np.logaddexp(0, -x), np.logaddexp(0, x)
    given = np.asarray(KNOWN & ~np.asarray(TARGETS))
    costliest = absent == absent[given].max()
    instead = 0 if large == "reject" else present
    want = by_hand(present, np.where(costliest & given, instead, absent))
    share = 1.01 / given.sum()  # of the absent ones: one
    got = mean_of("large_loss", 2, logits=logits, large=large, delta=share / 2)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("large", ["reject", "correct"])
def test_the_largest_losses_are_those_of_all_devices(large):
    """Eight of two rows each, which alone would have a share of less than a label."""
    rng = np.random.default_rng(0)
    logits, present = jnp.float32(rng.normal(0, 3, (8, 2, 5))), jnp.asarray(rng.random((8, 2, 5)))
    known = jnp.ones_like(present, bool)
    options = loss_options(name="large_loss", large=large, delta=0.05)
    epoch = jnp.int32(1)

    def mean_of_all(of_labels, *arguments):
        return of_labels(*(rows.reshape(16, 5) for rows in arguments))

    arguments = logits, present < 0.2, known
    shared = jax.vmap(mean_loss(options, epoch, axis="devices"), axis_name="devices")(*arguments)
    whole = mean_of_all(mean_loss(options, epoch), *arguments)
    np.testing.assert_allclose(shared.mean(), whole, rtol=1e-5)
    assert abs(whole - mean_of_all(binary_cross_entropy, *arguments)) > 0.1


def test_permanent_correction_takes_a_constant_share_from_the_second_epoch_on():
    """By what a label costs in both streams; never one that is unknown, or present already."""
    rng = np.random.default_rng(0)
    streams = rng.normal(0, 3, (2, 6, 10))
    present, known = rng.random((2, 6, 10)) < [[[0.3]], [[0.8]]]
    outputs = dict(zip(("global_logits", "local_logits"), jnp.float32(streams), strict=True))
    outputs["logits"] = -outputs["global_logits"]  # which decide nothing where there are two
    costs = np.where(known & ~present, np.logaddexp(0, streams).sum(axis=0), -np.inf)
    options = loss_options(name="large_loss", large="correct_permanently", delta=0.1)
    assert options.corrects_permanently
    number = int(0.1 * (known & ~present).sum())
    assert number == 3
    want = costs >= np.sort(costs, axis=None)[-number]
    for epoch in range(4):
        arguments = options, jnp.int32(epoch), outputs, jnp.asarray(present), jnp.asarray(known)
        np.testing.assert_array_equal(newly_present(*arguments), want & (epoch > 0))


def test_permanent_correction_of_one_stream():
    options = loss_options(name="large_loss", large="correct_permanently", delta=1.0)
    outputs = {"logits": LOGITS, "group_loss": jnp.float32(0.25)}  # of MSRN
    got = newly_present(options, jnp.int32(1), outputs, TARGETS, KNOWN)
    np.testing.assert_array_equal(got, KNOWN & ~TARGETS)
    # The loss itself is the cross entropy of labels as they have become.
    of_labels = mean_loss(options, jnp.int32(1))
    assert of_labels(LOGITS, TARGETS, KNOWN) == binary_cross_entropy(LOGITS, TARGETS, KNOWN)


def test_classes_weigh_as_they_are_told():
    weights = jnp.arange(1, LOGITS.shape[1] + 1, dtype=jnp.float32)
    costs = np.where(np.asarray(TARGETS), -np.log(P), -np.log(1 - P)) * np.asarray(weights)
    want = costs[np.asarray(KNOWN)].mean()
    np.testing.assert_allclose(mean_of("bce", weights=weights), want, rtol=1e-5)


def test_both_streams_have_the_loss_that_is_asked_for():
    of_labels = mean_loss(loss_options(name="asl"), jnp.int32(0))
    outputs = {"global_logits": LOGITS, "local_logits": 2 * LOGITS}
    loss, parts = total_loss(outputs, TARGETS, KNOWN, of_labels)
    np.testing.assert_allclose(parts["loss_global"], mean_of("asl"), rtol=1e-6)
    np.testing.assert_allclose(parts["loss_local"], mean_of("asl", logits=2 * LOGITS), rtol=1e-6)
    np.testing.assert_allclose(loss, parts["loss_global"] + parts["loss_local"], rtol=1e-6)

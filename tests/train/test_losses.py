"""The losses by their formula, and where their gradient must be exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.train.losses import binary_cross_entropy, smooth_targets, total_loss, two_stream_loss

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

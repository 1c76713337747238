"""What a label costs, against the formulas in float64, and gradients by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.train import label_losses
from mlic_jax.train.label_losses import asymmetric, cross_entropy, focal, hill

pytestmark = pytest.mark.numerical

X = np.concatenate([np.linspace(-12, 12, 97), [-2.9444389, 1.0]])  # the edge of the clip among them


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


def entropy(x):
    """-log sigmoid(x)"""
    return np.logaddexp(0, -x)


def asl_absent(x, gamma, clip):
    q = np.maximum(sigmoid(x) - clip, 0)
    return -(q**gamma) * np.log(1 - q)


CASES = {
    "bce": (cross_entropy(), entropy, lambda x: entropy(-x)),
    "focal": (
        focal(2.0, 0.25),
        lambda x: 0.25 * (1 - sigmoid(x)) ** 2 * entropy(x),
        lambda x: 0.75 * sigmoid(x) ** 2 * entropy(-x),
    ),
    "asl": (asymmetric(0.0, 4.0, 0.05), entropy, lambda x: asl_absent(x, 4, 0.05)),
    "asl of q2l": (
        asymmetric(1.0, 2.0, 0.0),
        lambda x: (1 - sigmoid(x)) * entropy(x),
        lambda x: sigmoid(x) ** 2 * entropy(-x),
    ),
    "hill": (
        hill(2.0),
        lambda x: (1 - sigmoid(x - 1)) ** 2 * entropy(x - 1),
        lambda x: (1.5 - sigmoid(x)) * sigmoid(x) ** 2,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["present", "absent"])
def test_costs(name, side):
    loss, *expected = CASES[name]
    want = expected[side == "absent"](X)
    got = getattr(loss, side)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["present", "absent"])
def test_costs_and_gradients_are_finite_whatever_the_logit(name, side):
    cost = getattr(CASES[name][0], side)
    extreme = jnp.array([-1e4, -1e3, -90.0, 0.0, 90.0, 1e3, 1e4], jnp.float32)
    costs, gradients = jax.vmap(jax.value_and_grad(cost))(extreme)
    assert np.isfinite(costs).all() and np.isfinite(gradients).all() and (costs >= 0).all()


@pytest.mark.parametrize("side", ["present", "absent"])
@pytest.mark.parametrize("name", ["bce", "focal", "hill"])
def test_gradients_are_those_of_differences(name, side):
    cost = getattr(CASES[name][0], side)
    with jax.enable_x64(True):
        step = 1e-5
        differences = (cost(jnp.asarray(X + step)) - cost(jnp.asarray(X - step))) / (2 * step)
        gradients = jax.vmap(jax.grad(cost))(jnp.asarray(X))
        np.testing.assert_allclose(gradients, differences, rtol=1e-6, atol=1e-9)


def test_weights_of_asl_carry_no_gradient():
    x = 0.7
    with jax.enable_x64(True):
        got = jax.grad(asymmetric(1.0, 4.0, 0.05).absent)(jnp.float64(x))
    p = sigmoid(x)
    np.testing.assert_allclose(got, (p - 0.05) ** 4 * p * (1 - p) / (1 - p + 0.05), rtol=1e-12)


def test_an_absent_label_below_the_clip_is_free():
    x = jnp.array([-20.0, -4.0, -2.95])  # p of 0 to 0.0497
    cost, gradient = jax.vmap(jax.value_and_grad(asymmetric(0.0, 1.0, 0.05).absent))(x)
    np.testing.assert_array_equal(cost, np.zeros(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_labels_that_look_present_count_as_present():
    x = jnp.array([[3.0, 0.3, -3.0]])
    got = label_losses.missing_as_present(x, jnp.array([[0.0, 0.0, 1.0]]), tau=0.6)
    np.testing.assert_array_equal(got, [[1, 0, 1]])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, []), (0.2, []), (0.25, [5]), (0.5, [4, 5]), (1.0, [1, 3, 4, 5])]
)
def test_the_costliest_of_the_absent(share, expected):
    costs = jnp.array([[9.0, 1.0, 8.0], [2.0, 3.0, 7.0]])
    absent = jnp.array([[False, True, False], [True, True, True]])  # 1, 2, 3 and 7
    got = label_losses.large_losses(costs, absent, jnp.float32(share))
    assert np.flatnonzero(np.asarray(got)).tolist() == expected


def test_the_costliest_where_all_are_absent():
    costs = jnp.array([[4.0, 1.0], [2.0, 3.0]])
    got = label_losses.large_losses(costs, jnp.ones((2, 2), bool), jnp.float32(0.5))
    np.testing.assert_array_equal(got, [[True, False], [False, True]])
    assert label_losses.large_losses(costs, jnp.ones((2, 2), bool), jnp.float32(1)).all()


@pytest.mark.parametrize("rule", ["inverse", "effective"])
def test_rare_classes_weigh_more(rule):
    counts = np.array([400, 100, 25, 25])
    got = np.asarray(label_losses.balanced_weights(jnp.asarray(counts), 1000, rule), np.float64)
    numbers = counts if rule == "inverse" else (1 - (1 - 1 / 1000) ** counts) / (1 / 1000)
    want = 1 / numbers
    np.testing.assert_allclose(got, want / want.mean(), rtol=1e-5)


def test_weights_are_clipped():
    counts = jnp.array([0, *[100_000] * 99])
    got = np.asarray(label_losses.balanced_weights(counts, 100_000, "inverse"))
    np.testing.assert_allclose(got[0] / got[1], 100, rtol=1e-6)  # 10 against 0.1
    np.testing.assert_allclose(got.mean(), 1, rtol=1e-6)

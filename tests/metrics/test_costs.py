"""What a photo costs, against moving it and measuring again."""

import numpy as np
import pytest

from mlic_jax.metrics.average_precision import average_precision
from mlic_jax.metrics.costs import average_precision_costs, mean_costs


@pytest.mark.parametrize("decimals", [8, 1])  # of the scores; with 1 many are equal
def test_a_photo_costs_what_moving_it_gains(decimals):
    rng = np.random.default_rng(decimals)
    scores = np.round(rng.normal(size=(25, 4)), decimals).astype(np.float32)
    labels = rng.choice([-1, -1, 0, 1], (25, 4)).astype(np.int8)
    labels[:, 3] = -1
    costs = average_precision_costs(scores, labels)
    before = average_precision(scores, labels)
    for i in range(25):
        moved = scores.copy()
        moved[i] = np.where(labels[i] > 0, 9, -9)
        expected = np.where(labels[i] == 0, 0, average_precision(moved, labels) - before)
        np.testing.assert_allclose(costs[i], expected, atol=1e-10)
    assert np.nanmin(costs) == 0 and np.isnan(costs[:, 3]).all()
    np.testing.assert_allclose(mean_costs(costs), costs[:, :3].mean(axis=1))


def test_of_no_class_with_positives_nothing_is_lost():
    costs = average_precision_costs(np.zeros((3, 1), np.float32), -np.ones((3, 1), np.int8))
    np.testing.assert_array_equal(mean_costs(costs), np.zeros(3))

"""Which photos are asked for: the least certain ones, and no two alike."""

import numpy as np
import pytest

from mlic_jax.review.selection import SHORTLIST, k_center, most_informative, uncertainty


def test_uncertainty_is_the_mean_entropy_of_what_is_known():
    probabilities = np.array([[0.5, 0.5], [0.5, 1.0], [0.5, np.nan], [0.0, 1.0], [np.nan, np.nan]])
    np.testing.assert_allclose(uncertainty(probabilities), [1, 0.5, 1, 0, 0], atol=1e-9)
    quarter = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
    np.testing.assert_allclose(uncertainty(np.array([[0.25, 0.75]])), [quarter], rtol=1e-12)


def test_k_center_is_the_greedy_one():
    points = np.random.default_rng(0).normal(size=(40, 3))
    centres = points[:2]
    chosen, left = [], [*centres]
    for _ in range(6):
        distances = [min(np.sum((p - c) ** 2) for c in left) for p in points[2:]]
        chosen.append(int(np.argmax(distances)))
        left.append(points[2 + chosen[-1]])
    assert k_center(points[2:], centres, 6).tolist() == chosen


def test_k_center_takes_each_once():
    same = np.ones((5, 2))
    assert sorted(k_center(same, same[:0], 9).tolist()) == [0, 1, 2, 3, 4]
    assert k_center(same[:0], same, 3).tolist() == []


@pytest.fixture
def photos():
    """A hundred directions, and probabilities of which the k-th is the k-th least certain."""
    features = np.random.default_rng(1).normal(size=(100, 4))
    return features, np.linspace(0.5, 0.99, 100)[:, None]


def test_the_least_certain_are_the_shortlist(photos):
    features, probabilities = photos
    is_labelled = np.arange(100) < 10
    chosen = most_informative(features, probabilities, is_labelled, 6)
    assert len(set(chosen.tolist())) == 6
    assert all(10 <= i < 10 + 6 * SHORTLIST for i in chosen)


def test_of_copies_one_is_asked_for(photos):
    features, probabilities = photos
    features = features.copy()
    features[10:20] = features[10]  # as the least certain ones may well be
    chosen = most_informative(features, probabilities, np.arange(100) < 10, 6)
    assert sum(10 <= i < 20 for i in chosen) <= 1


def test_where_nothing_is_known_all_may_be_asked_for(photos):
    features, _ = photos
    nothing = np.full((100, 2), np.nan)
    chosen = most_informative(features, nothing, np.zeros(100, bool), 100)
    assert sorted(chosen.tolist()) == list(range(100))

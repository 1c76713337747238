"""Methods of several runs: intervals, Holm's correction and ranks against what papers print."""

import numpy as np
import pytest

from mlic_jax.errors import Failure
from mlic_jax.metrics.methods import compare_methods, critical_difference, holm, mean_ranks
from mlic_jax.metrics.significance import compare


def scores_and_labels(noises, seed=0, images=120, classes=3):
    """Scores of runs, each the labels with noise of its own."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((images, classes)) < 0.3, 1, -1).astype(np.int8)
    return [labels + noise * rng.standard_normal(labels.shape) for noise in noises], labels


def test_of_one_run_each_it_is_the_paired_bootstrap():
    (good, bad), labels = scores_and_labels((0.8, 1.3))
    found = compare_methods({"good": [good], "bad": [bad]}, labels, "bad", resamples=200)
    expected = compare(good, bad, labels, resamples=200)
    assert found["good"]["mAP"] == pytest.approx(expected["mAP"])
    assert found["good"]["difference"] == pytest.approx(expected["difference"])
    assert found["good"]["difference_interval"] == pytest.approx(expected["interval"])
    assert found["good"]["p_value"] == found["good"]["holm"] == expected["p_value"]
    assert found["good"]["deviation"] is None
    assert "difference" not in found["bad"]


def test_the_luck_of_the_runs_is_in_the_interval():
    """The mean of the two is the same, and the runs of one are far from each other."""
    (near, far, middle), labels = scores_and_labels((0.5, 2.0, 1.0))
    runs = {"apart": [near, far], "alike": [middle, middle]}
    found = compare_methods(runs, labels, "alike", resamples=400)
    (low, high), (least, most) = found["apart"]["interval"], found["alike"]["interval"]
    assert high - low > 1.5 * (most - least)
    assert found["apart"]["mAP"] == pytest.approx(np.mean(found["apart"]["runs"]))
    one, other = found["apart"]["runs"]
    assert found["apart"]["deviation"] == pytest.approx(abs(one - other) / np.sqrt(2))


def test_without_a_positive_there_is_nothing_to_compare():
    labels = -np.ones((4, 2), np.int8)
    with pytest.raises(Failure, match="no class has a positive"):
        compare_methods({"a": [np.zeros((4, 2))]}, labels, "a", resamples=2)


def test_holm_goes_step_by_step():
    """4 x 0.01, then 3 x 0.02 and 2 x 0.03, neither below what was before, then 1 x 0.9."""
    corrected = holm({"c": 0.03, "a": 0.01, "d": 0.9, "b": 0.02})
    assert list(corrected) == ["c", "a", "d", "b"]
    assert [corrected[name] for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.9])
    assert holm({"a": 0.4, "b": 0.6}) == {"a": 0.8, "b": 0.8}


def test_ranks_share_ties():
    ranks = mean_ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 1.0]]))
    np.testing.assert_allclose(ranks, [1.25, 2.25, 2.5])


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (4, 2.569), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_table(methods, quantile):
    """Table 5a of Demsar 2006, to its three digits."""
    expected = quantile * np.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=4e-4)

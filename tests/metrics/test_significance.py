"""Resamples against AP on the drawn rows; intervals and tests on cases whose answer is known."""

import json

import numpy as np
import pytest

from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics import average_precision, significance
from mlic_jax.metrics.significance import bootstrap_intervals, compare, resampled_average_precision

KINDS = ("raw", "envelope", "voc11")


def random_case(num_images=60, num_classes=5, unknown=0.1, seed=0, separation=1.0):
    """Scores with ties, and ternary labels of which a quarter is present."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((num_images, num_classes)) < 0.25, 1, -1).astype(np.int8)
    scores = (rng.normal(size=labels.shape) + separation * (labels > 0)).round(1)
    labels[rng.random(labels.shape) < unknown] = 0
    return scores.astype(np.float32), labels


# 255 and 256 images lie on both sides of the largest count that a byte holds.
@pytest.mark.parametrize("num_images", [1, 7, 60, 255, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resample_is_the_drawn_images(kind, num_images):
    scores, labels = random_case(num_images)
    labels[:, 1] = -1  # without positives
    labels[:, 2], labels[np.argmin(scores[:, 2]), 2] = -1, 1  # one, behind all others
    labels[:, 3] = 1
    others = scores[::-1] + np.float32(0.5) * scores
    resamples = significance.RESAMPLES_AT_ONCE + 3
    got = resampled_average_precision([scores, others], labels, kind, resamples, seed=5)
    rng = np.random.default_rng(5)
    for k in range(resamples):
        drawn = np.sort(rng.integers(num_images, size=num_images))
        for each, ap in zip((scores, others), got, strict=True):
            expected = average_precision.average_precision(each[drawn], labels[drawn], kind)
            np.testing.assert_allclose(ap[k], expected, rtol=1e-9, atol=1e-9)
    assert np.isnan(got[0][:, 1]).all()


def test_intervals_are_percentiles_of_the_resamples():
    scores, labels = random_case()
    result = bootstrap_intervals(scores, labels, resamples=200, seed=3)
    (ap,) = resampled_average_precision([scores], labels, "raw", 200, seed=3)
    np.testing.assert_allclose(result["AP"], np.percentile(ap, [2.5, 97.5], axis=0).T)
    assert result["mAP"] == pytest.approx(np.percentile(ap.mean(axis=1), [2.5, 97.5]))
    assert (result["level"], result["resamples"], result["seed"]) == (95, 200, 3)
    assert bootstrap_intervals(scores, labels, resamples=200, seed=3) == result
    assert bootstrap_intervals(scores, labels, resamples=200, seed=4) != result
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_classes_without_positives_are_in_no_interval():
    scores, labels = random_case(unknown=0)
    labels[:, 1] = -1
    labels[:, 2] = -1
    labels[7, 2] = 1  # in 64 of 100 resamples
    result = bootstrap_intervals(scores, labels, resamples=300)
    assert result["AP"][1] is None
    (ap,) = resampled_average_precision([scores], labels, "raw", 300, seed=0)
    assert 60 < np.isnan(ap[:, 2]).sum() < 160
    defined = ap[:, 2][~np.isnan(ap[:, 2])]
    assert result["AP"][2] == pytest.approx(np.percentile(defined, [2.5, 97.5]))
    assert result["mAP"] == pytest.approx(np.percentile(np.nanmean(ap, axis=1), [2.5, 97.5]))


def test_a_resample_without_any_positive_says_nothing_of_map():
    scores, labels = np.array([[1.0], [2.0], [3.0]]), np.array([[1], [-1], [-1]], np.int8)
    result = bootstrap_intervals(scores, labels, resamples=100)
    assert result["mAP"] == result["AP"][0] and result["mAP"][0] > 30
    # The other way round the positive is always first, and better unless nothing else is drawn.
    first, last = resampled_average_precision([-scores, scores], labels, "raw", 100, seed=0)
    alike, defined = np.sum(first == last), np.sum(~np.isnan(first))
    assert alike > 0 and defined < 90
    p_value = compare(-scores, scores, labels, resamples=100)["p_value"]
    assert p_value == pytest.approx(2 * (alike + 1) / (defined + 1))


def test_intervals_cover_as_often_as_they_say():
    """Of 60 sets drawn from one population, the 95% interval of mAP misses its mean in few."""

    def population(seed):
        return random_case(200, 4, unknown=0, seed=seed, separation=1.5)

    truth = np.mean(
        [np.mean(average_precision.average_precision(*population(s))) for s in range(400)]
    )
    intervals = [
        bootstrap_intervals(*population(1000 + s), resamples=100)["mAP"] for s in range(60)
    ]
    covering = sum(low <= truth <= high for low, high in intervals)
    assert 52 <= covering <= 60
    assert np.mean([high - low for low, high in intervals]) < 15


def test_a_better_model_is_found_to_be_better():
    scores, labels = random_case(300)
    worse = scores + np.random.default_rng(1).normal(size=scores.shape)
    result = compare(scores, worse, labels, resamples=300)
    expected = [
        np.mean(average_precision.average_precision(each, labels)) for each in (scores, worse)
    ]
    assert [result["mAP"], result["mAP_of_other"]] == pytest.approx(expected)
    assert result["difference"] == pytest.approx(expected[0] - expected[1])
    low, high = result["interval"]
    assert 0 < low < result["difference"] < high
    assert result["p_value"] == pytest.approx(2 / 301)  # the smallest that 300 resamples can show
    assert result["test"] == "paired bootstrap"
    assert json.loads(json.dumps(result, allow_nan=False)) == result

    turned = compare(worse, scores, labels, resamples=300)
    assert turned["p_value"] == result["p_value"]
    assert turned["interval"] == pytest.approx([-high, -low])


def test_the_test_is_paired():
    """A small, steady gain is found within intervals of mAP that are far wider than it."""
    scores, labels = random_case(300, separation=1.0)
    better = scores + np.float32(0.15) * (labels > 0)
    result = compare(better, scores, labels, resamples=300)
    low, high = bootstrap_intervals(scores, labels, resamples=300)["mAP"]
    assert result["difference"] < (high - low) / 2
    assert result["p_value"] < 0.02


def test_equal_models_do_not_differ():
    scores, labels = random_case()
    result = compare(scores, 2 * scores, labels, resamples=50)
    assert (result["difference"], result["interval"], result["p_value"]) == (0, [0, 0], 1)


def test_p_values_of_equally_good_models_are_even():
    """Two models that differ by noise alone: p below 0.2 about one time in five."""
    rng = np.random.default_rng(2)
    p_values = []
    for seed in range(100):
        scores, labels = random_case(100, 4, seed=seed)
        noisy = (scores + 0.7 * rng.normal(size=scores.shape) for _ in range(2))
        p_values.append(compare(*noisy, labels, resamples=99)["p_value"])
    assert 8 <= np.sum(np.array(p_values) <= 0.2) <= 34


@pytest.mark.parametrize("resamples", [0, -5])
def test_no_resamples_are_refused(resamples):
    with pytest.raises(UsageError, match=f"resamples is {resamples}; it must be at least 1"):
        bootstrap_intervals(*random_case(), resamples=resamples)


def test_bad_scores_are_refused():
    scores, labels = random_case()
    broken = scores.copy()
    broken[3, 2] = np.nan
    with pytest.raises(Failure, match="image 3, class 2"):
        compare(scores, broken, labels, resamples=10)
    with pytest.raises(UsageError, match="scores and labels must both be"):
        compare(scores, scores[1:], labels, resamples=10)
    with pytest.raises(Failure, match="no class has a positive label"):
        compare(scores, scores, -np.abs(labels), resamples=10)

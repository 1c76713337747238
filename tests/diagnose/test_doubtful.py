"""Doubtful labels against definitions written out, and against what cleanlab says where it is."""

import math

import numpy as np
import pytest

from mlic_jax.diagnose import doubtful
from mlic_jax.diagnose.doubtful import Doubt, doubtful_labels, label_quality, photo_quality
from mlic_jax.errors import UsageError


def random_labels(seed, photos=60, classes=5, unknown=0.0):
    """Labels of which a tenth are not what the probabilities say."""
    rng = np.random.default_rng(seed)
    truth = rng.random((photos, classes)) < np.linspace(0.1, 0.6, classes)
    probabilities = np.clip(np.where(truth, 0.7, 0.2) + rng.normal(0, 0.2, truth.shape), 0, 1)
    labels = np.where(truth ^ (rng.random(truth.shape) < 0.1), 1, -1).astype(np.int8)
    labels[rng.random(truth.shape) < unknown] = 0
    return labels, probabilities


# --- references, a label at a time


def reference_doubts(labels, probabilities):
    found = []
    for c in range(labels.shape[1]):
        sides = {
            side: [
                p if side > 0 else 1 - p
                for p, label in zip(probabilities[:, c], labels[:, c], strict=True)
                if label == side and not math.isnan(p)
            ]
            for side in (1, -1)
        }
        for i, label in enumerate(labels[:, c]):
            p = probabilities[i, c]
            if label == 0 or math.isnan(p) or not sides[-label]:
                continue
            other = p if label < 0 else 1 - p
            if other > 0.5 and other >= math.fsum(sides[-label]) / len(sides[-label]):
                found.append(Doubt(i, c, "wrong" if label > 0 else "missing", 1 - other))
    return sorted(found, key=lambda one: (one.quality, one.photo, one.class_index))


def reference_aggregate(row, aggregate):
    known = [value for value in row if not math.isnan(value)]
    if not known:
        return math.nan
    if aggregate == "softmin":
        weights = [math.exp((1 - value) / 0.1) for value in known]
        return math.fsum(w * v for w, v in zip(weights, known, strict=True)) / math.fsum(weights)
    first, *rest = sorted(known, reverse=True)
    for value in rest:
        first = 0.8 * value + 0.2 * first
    return first


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_as_written_out(unknown):
    labels, probabilities = random_labels(1, unknown=unknown)
    probabilities[:, 2] = np.nan if unknown else probabilities[:, 2]
    labels[labels[:, 0] > 0, 0] = -1  # a class that no photo shows
    if unknown:
        labels[7] = 0
        probabilities[:20, 1] = np.nan
    found, expected = (
        doubtful_labels(labels, probabilities),
        reference_doubts(labels, probabilities),
    )
    assert [one[:3] for one in found] == [one[:3] for one in expected]
    assert {one.kind for one in found} == {"missing", "wrong"} and len(found) > 5
    np.testing.assert_allclose(
        [o.quality for o in found], [o.quality for o in expected], atol=1e-15
    )
    quality = label_quality(labels, probabilities)
    assert np.array_equal(np.isnan(quality), (labels == 0) | np.isnan(probabilities))
    for aggregate in doubtful.AGGREGATES:
        one_by_one = [reference_aggregate(row, aggregate) for row in quality.tolist()]
        np.testing.assert_allclose(photo_quality(quality, aggregate), one_by_one, rtol=1e-12)


def test_a_rare_class_is_held_to_what_is_said_of_it():
    """Of one that is never likelier than 0.6, that much is much; of one that is at 0.95, little."""
    labels = np.array([[1, 1], [1, 1], [-1, -1], [-1, -1]], np.int8)
    sure = np.array([[0.55, 0.95], [0.6, 0.95], [0.58, 0.6], [0.1, 0.1]])
    assert [one[:3] for one in doubtful_labels(labels, sure)] == [(2, 0, "missing")]


def test_what_reaches_its_threshold_and_is_not_likely_is_no_error():
    """Of a class that is never likely, as confident learning would have it."""
    labels = np.array([[1], [1], [-1], [-1]], np.int8)
    rare = np.array([[0.2], [0.3], [0.4], [0.1]])
    assert doubtful.class_thresholds(labels, rare)[0] == pytest.approx(0.25)
    found = doubtful.is_doubtful(labels, rare)
    assert found.ravel().tolist() == [True, False, False, False]


def test_what_is_refused():
    labels, probabilities = random_labels(0)
    with pytest.raises(UsageError, match=r"\(60, 5\) and probabilities \(60, 4\)"):
        doubtful_labels(labels, probabilities[:, 1:])
    with pytest.raises(UsageError, match="labels must be 1, 0 and -1"):
        doubtful_labels(labels * 2, probabilities)
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        doubtful_labels(labels, probabilities + 1)
    with pytest.raises(UsageError, match="aggregate"):
        photo_quality(probabilities, "median")


# --- what cleanlab says


@pytest.fixture(scope="module")
def cleanlab():
    return pytest.importorskip("cleanlab", reason="compares with cleanlab, if it is installed")


def for_cleanlab(labels):
    return [np.flatnonzero(row > 0).tolist() for row in labels]


@pytest.mark.parametrize("seed", range(3))
def test_qualities_are_those_of_cleanlab(cleanlab, seed):
    from cleanlab.multilabel_classification import rank

    labels, probabilities = random_labels(seed, photos=200)
    given, quality = for_cleanlab(labels), label_quality(labels, probabilities)
    for method in ("self_confidence", "normalized_margin"):
        theirs = rank.get_label_quality_scores_per_class(given, probabilities, method=method)
        np.testing.assert_allclose(quality, theirs, atol=1e-12)
    for aggregate, theirs in {
        "moving_average": {"method": "exponential_moving_average", "alpha": 0.8},
        "softmin": {"method": "softmin", "temperature": 0.1},
    }.items():
        expected = rank.get_label_quality_scores(given, probabilities, aggregator_kwargs=theirs)
        np.testing.assert_allclose(photo_quality(quality, aggregate), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_of_cleanlab_and_doubts_among_its(cleanlab, seed):
    """Theirs are also those whose other value is the less likely one, and above its threshold."""
    from cleanlab.count import get_confident_thresholds
    from cleanlab.multilabel_classification import filter as issues

    labels, probabilities = random_labels(seed, photos=200)
    present, absent = doubtful.class_thresholds(labels, probabilities)
    for c in range(labels.shape[1]):
        of_both = np.stack([1 - probabilities[:, c], probabilities[:, c]], axis=1)
        theirs = get_confident_thresholds((labels[:, c] > 0).astype(int), of_both)
        np.testing.assert_allclose([absent[c], present[c]], theirs, atol=1e-12)
    theirs = issues.find_multilabel_issues_per_class(
        for_cleanlab(labels), probabilities, filter_by="confident_learning"
    )
    likelier = label_quality(labels, probabilities) < 0.5
    ours = doubtful.is_doubtful(labels, probabilities)
    assert np.array_equal(ours, theirs & likelier) and ours.any()

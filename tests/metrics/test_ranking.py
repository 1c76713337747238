"""Ranking metrics against scikit-learn, and against pairs counted one by one where it cannot go."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlic_jax.metrics.ranking import ranking_metrics


def scikit_learn(scores, labels):
    present = labels > 0
    precision = sklearn.metrics.label_ranking_average_precision_score(present, scores)
    return {
        "coverage_error": sklearn.metrics.coverage_error(present, scores),
        "label_ranking_average_precision": 100 * precision,
        "ranking_loss": 100 * sklearn.metrics.label_ranking_loss(present, scores),
    }


def definition(scores, labels):
    """Image by image and pair by pair, over the labels that are not 0."""
    rows = []
    for score, label in zip(scores, labels, strict=True):
        present = [s for s, y in zip(score, label, strict=True) if y > 0]
        absent = [s for s, y in zip(score, label, strict=True) if y < 0]
        coverage = sum(s >= min(present) for s in present + absent) if present else 0
        precision, loss = 1.0, 0.0
        if present and absent:
            precision = np.mean(
                [
                    sum(other >= s for other in present)
                    / sum(other >= s for other in present + absent)
                    for s in present
                ]
            )
            loss = np.mean([a >= p for p in present for a in absent])
        rows.append((coverage, 100 * precision, 100 * loss))
    names = ("coverage_error", "label_ranking_average_precision", "ranking_loss")
    return dict(zip(names, np.mean(rows, axis=0), strict=True))


def test_by_hand():
    # Ranked: present, absent, present, absent; the one unknown label stands above all of them.
    scores = np.array([[9.0, 4.0, 3.0, 2.0, 1.0]])
    labels = np.array([[0, 1, -1, 1, -1]], np.int8)
    assert ranking_metrics(scores, labels) == {
        "coverage_error": 3,
        "label_ranking_average_precision": pytest.approx(100 * (1 + 2 / 3) / 2),
        "ranking_loss": pytest.approx(100 / 4),
    }


@pytest.mark.parametrize("num_classes", [2, 3, 20])
@pytest.mark.parametrize("distinct", [1, 4, 10_000])
def test_agrees_with_scikit_learn(distinct, num_classes):
    rng = np.random.default_rng(distinct)
    shape = (300, num_classes)
    scores = rng.integers(distinct, size=shape).astype(np.float32)
    labels = rng.choice(np.array([-1, 1], np.int8), p=[0.7, 0.3], size=shape)
    labels[0], labels[1] = -1, 1  # without a present label, without an absent one
    got = ranking_metrics(scores, labels)
    assert got == pytest.approx(scikit_learn(scores, labels), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_agrees_with_the_definition_on_any_small_case(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    elements = st.sampled_from([-2.0, 0.0, 0.5, 3.0])
    scores = data.draw(hnp.arrays(np.float32, shape, elements=elements))
    labels = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 0, 1])))
    assert ranking_metrics(scores, labels) == pytest.approx(definition(scores, labels), rel=1e-12)


def test_unknown_labels_move_nothing():
    rng = np.random.default_rng(0)
    scores = rng.integers(5, size=(100, 8)).astype(np.float32)
    labels = rng.choice(np.array([-1, 0, 1], np.int8), size=scores.shape)
    before = ranking_metrics(scores, labels)
    scores[labels == 0] = rng.integers(-9, 9, size=(labels == 0).sum())
    assert ranking_metrics(scores, labels) == before


def test_images_without_a_known_label():
    scores, labels = np.ones((2, 3), np.float32), np.zeros((2, 3), np.int8)
    assert list(ranking_metrics(scores, labels).values()) == [0, 100, 0]


def test_scores_apart_by_less_than_float32_tells_are_apart():
    scores, labels = np.array([[1.0, 1.0 + 1e-12]]), np.array([[-1, 1]], np.int8)
    assert ranking_metrics(scores, labels)["ranking_loss"] == 0

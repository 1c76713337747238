"""Cross-fitted probabilities against scikit-learn's ridge regression, and what they find."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_info

from mlic_jax.diagnose import cross_fit as module
from mlic_jax.diagnose.cross_fit import cross_fit, folds_of, ridge_scores
from mlic_jax.diagnose.doubtful import label_quality
from mlic_jax.errors import Failure, UsageError


def made(seed, photos=120, classes=4, unknown=0.0):
    """Features that say most of the labels, of which one is rare: features, labels, ids."""
    rng = np.random.default_rng(seed)
    features = rng.normal(3, 2, (photos, 12)).astype(np.float32)
    scores = (features[:, :classes] - 3) / 2 + rng.normal(0, 0.3, (photos, classes))
    labels = np.where(scores > np.linspace(0, 1.5, classes), 1, -1).astype(np.int8)
    labels[rng.random(labels.shape) < unknown] = 0
    return features, labels, [f"photo{i}" for i in range(photos)]


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_scores_are_those_of_a_ridge_regression_of_the_other_folds(unknown):
    features, labels, ids = made(0, unknown=unknown)
    fold, penalties = folds_of(ids, labels, 4, 0), (0.1, 3.0)
    standard = (features - features.mean(0, dtype=float)) / (features.std(0, dtype=float) + 1e-6)
    found = ridge_scores(standard, labels, fold, penalties)
    for p, penalty in enumerate(penalties):
        for part in range(4):
            for c in range(labels.shape[1]):
                fitted = (fold != part) & (labels[:, c] != 0)
                ridge = Ridge(penalty * fitted.sum()).fit(standard[fitted], labels[fitted, c])
                expected = ridge.predict(standard[fold == part])
                np.testing.assert_allclose(found[p, fold == part, c], expected, atol=1e-9)


def test_of_few_features_the_axes_say_all_and_of_many_the_most(monkeypatch):
    features, *_ = made(6)
    standard = (features - features.mean(0, dtype=float)) / (features.std(0, dtype=float) + 1e-6)
    square = standard @ standard.T
    all_axes = module.principal(features)
    np.testing.assert_allclose(all_axes @ all_axes.T, square, atol=1e-9)
    monkeypatch.setattr(module, "AXES", 5)
    few = module.principal(features)
    assert few.shape == (120, 5)
    largest = np.linalg.eigvalsh(square)[-5:]
    np.testing.assert_allclose(np.linalg.eigvalsh(few.T @ few), largest, rtol=1e-9)


def test_folds_are_fair_and_the_same_for_a_photo_wherever_it_stands():
    _, labels, ids = made(1)
    fold = folds_of(ids, labels, 5, 0)
    assert np.bincount(fold).tolist() == [24] * 5
    for c in range(labels.shape[1]):
        of_class = np.bincount(fold[labels[:, c] > 0], minlength=5)
        assert of_class.max() - of_class.min() <= 2, c
    backwards = folds_of(ids[::-1], labels[::-1], 5, 0)
    assert np.array_equal(backwards[::-1], fold)
    assert not np.array_equal(folds_of(ids, labels, 5, 1), fold)


def test_a_photo_is_judged_by_others_alone():
    """Labels of its fold move its scores by no more than a sum is rounded; all others' do."""
    features, labels, ids = made(2)
    fold = folds_of(ids, labels, 5, 0)
    changed = labels.copy()
    changed[fold == 3] *= -1
    before, after = (ridge_scores(features, of, fold) for of in (labels, changed))
    np.testing.assert_allclose(before[:, fold == 3], after[:, fold == 3], atol=1e-9)
    assert not np.allclose(before[:, fold != 3], after[:, fold != 3])


def test_the_logistic_curve_has_the_least_loss():
    rng = np.random.default_rng(3)
    x = rng.normal(size=80)
    is_present = x + rng.normal(size=80) > 1.5
    slope, offset = module._logistic_curve(x, is_present)
    count = is_present.sum()
    target = np.where(is_present, (count + 1) / (count + 2), 1 / (80 - count + 2))

    def loss(curve):
        logits = curve[0] * x + curve[1]
        return np.sum(np.logaddexp(0, logits) - target * logits)

    best = minimize(loss, [0, 0], tol=1e-12)
    assert loss((slope, offset)) <= best.fun + 1e-6
    assert slope > 0.5
    falling, same = module._logistic_curve(-x, is_present)
    assert falling == 0 and same == pytest.approx(np.log(target.mean() / (1 - target.mean())))


def test_probabilities_find_planted_errors_and_know_what_they_cannot_judge():
    features, labels, ids = made(4, photos=300)
    wrong = np.zeros(labels.shape, bool)
    wrong[np.random.default_rng(0).choice(300, 20, replace=False), 1] = True
    given = np.where(wrong, -labels, labels)
    given[:, 3] = -1
    given[0, 3] = 1  # a class of one photo
    given[5] = 0
    probabilities = cross_fit(features, given, ids)
    assert np.isnan(probabilities[:, 3]).all()
    judged = probabilities[:, :3]
    assert ((judged > 0) & (judged < 1)).all()  # of a photo without labels too
    quality = label_quality(given, probabilities)[:, 1]
    worst = np.argsort(quality)[:10]
    assert wrong[worst, 1].all()  # of 20 among 300
    assert np.array_equal(cross_fit(features, given, ids), probabilities, equal_nan=True)
    # What is said of a class is on average as often so.
    assert abs(judged.mean(0) - (given[:, :3] > 0).mean(0)).max() < 0.03


def test_what_is_refused():
    features, labels, ids = made(5, photos=20)
    with pytest.raises(UsageError, match="folds is 1; it must be at least 2"):
        cross_fit(features, labels, ids, folds=1)
    with pytest.raises(Failure, match="no class is known to be present in 2 photos"):
        cross_fit(features, np.ones_like(labels), ids)
    with pytest.raises(Failure, match="not finite"):
        cross_fit(features * np.inf, labels, ids)


def test_small_systems_are_solved_by_one_thread(monkeypatch):
    threads = []

    def looked(*arguments):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if is_blas(pool))
        return ridge_scores(*arguments)

    def is_blas(pool):
        return pool["user_api"] == "blas"

    monkeypatch.setattr("mlic_jax.diagnose.cross_fit.ridge_scores", looked)
    labels = np.where(np.arange(20)[:, None] % 2, 1, -1)
    cross_fit(np.random.default_rng(0).normal(size=(20, 3)), labels, [str(i) for i in range(20)])
    assert set(threads) == {1}

"""Probabilities of labels by probes that were not fitted on their photos, in seconds.

Ridge regression on features that are computed once, in closed form: photos are divided into folds,
each with its share of every label, and each is scored by the probe of all others. The scores of a
class become probabilities by a logistic curve (Platt, "Probabilistic outputs for support vector
machines", 1999), so that those of rare and of frequent classes say the same; it has two numbers,
which are fitted on these scores themselves. The penalty is the one with the least log loss.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from mlic_jax.data.records import Split
from mlic_jax.data.splitting import stratified_parts
from mlic_jax.errors import Failure, UsageError

FOLDS = 5
PENALTIES = tuple(10.0**k for k in np.arange(-1, 2.5, 0.5))  # for each photo that is fitted on
AXES = 256  # of features, along which photos differ most
LEAST = 2  # photos of either side that a class needs, so that no fold has all of them


def cross_fit(
    features: np.ndarray,
    labels: np.ndarray,
    ids: Sequence[str],
    folds: int = FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """The probability that each class is present in each photo, by probes that know not its labels.

    Unknown labels (0) are fitted on by none; they have a probability too, as all photos do.

    Args:
        features: float `[N, D]`, finite.
        labels: int8 `[N, C]` in {+1, 0, -1}.
        ids: N of photos, each once; with the seed they say which fold a photo is in.
        folds: how many, at least 2.
        seed: of the folds.

    Returns:
        float64 `[N, C]`; NaN of a class that has not two photos of either side.

    Raises:
        UsageError: there are too few folds.
        Failure: of no class can anything be said, or the features are not finite.
    """
    if folds < 2:
        raise UsageError(f"folds is {folds}; it must be at least 2")
    if not np.isfinite(features).all():
        raise Failure("the features of a photo are not finite: its backbone is of no use here")
    labels = np.asarray(labels)
    judged = np.flatnonzero(((labels > 0).sum(0) >= LEAST) & ((labels < 0).sum(0) >= LEAST))
    if not len(judged):
        raise Failure(
            f"no class is known to be present in {LEAST} photos and absent in {LEAST} others: no "
            "label can be judged"
        )
    fold = folds_of(ids, labels, folds, seed)
    of_judged = labels[:, judged]
    best, least = np.empty(0), np.inf
    # Its systems are small: more threads wait for each other, ten times as long on busy cores.
    with threadpool_limits(limits=1, user_api="blas"):
        for scores in ridge_scores(principal(features), of_judged, fold):
            probabilities = calibrated(scores, of_judged)
            if (loss := log_loss(probabilities, of_judged)) < least:
                best, least = probabilities, loss
    found = np.full(labels.shape, np.nan)
    found[:, judged] = best
    return found


def photo_ids(splits: Iterable[Split]) -> list[str]:
    """An id for each photo of some splits, one split after the other, each once for `cross_fit`."""
    return [f"{split.split}/{split.image_id(i)}" for split in splits for i in range(len(split))]


def folds_of(ids: Sequence[str], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each photo, int `[N]`: each has its share of every label, rare ones too."""
    shares = {f"{number:03}": 1 / folds for number in range(1, folds)}
    parts = stratified_parts(ids, labels, shares, "000", seed)
    fold = np.empty(len(ids), int)
    for part, photos in parts.items():
        fold[photos] = int(part)
    return fold


def principal(features: np.ndarray) -> np.ndarray:
    """Standardised features along their `AXES` principal axes, or all there are; float64 `[N, K]`.

    The penalty leaves little of the others, and a fit takes a tenth of the time.
    """
    mean, deviation = features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float) + 1e-6
    standard = (features - mean) / deviation
    count = standard.shape[1]
    of_largest = (max(0, count - AXES), count - 1)
    _, axes = scipy.linalg.eigh(standard.T @ standard, subset_by_index=of_largest)
    return standard @ axes


def ridge_scores(
    features: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
) -> np.ndarray:
    """Scores of every photo by the ridge regression of all other folds.

    Of features on labels of +1 and -1, with a constant that is not penalised.

    Args:
        features: float `[N, K]`.
        labels: `[N, C]`; the classes that are unknown for the same photos are fitted together.
        fold: int `[N]`.
        penalties: P, each times the number of photos that are fitted on.

    Returns:
        float64 `[P, N, C]`.
    """
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    scores = np.empty((len(penalties), *labels.shape))
    patterns, pattern_of = np.unique(labels != 0, axis=1, return_inverse=True)
    for number, is_known in enumerate(patterns.T):
        classes = np.flatnonzero(pattern_of.ravel() == number)
        of_classes = labels[:, classes].astype(float)
        parts = [np.flatnonzero((fold == part) & is_known) for part in range(fold.max() + 1)]
        # Products of a fold are made once; those of all others are what is left of the sum.
        squares = [rows[part].T @ rows[part] for part in parts]
        products = [rows[part].T @ of_classes[part] for part in parts]
        square, product = np.sum(squares, axis=0), np.sum(products, axis=0)
        for part, photos in enumerate(parts):
            to_score = np.flatnonzero(fold == part)
            count = is_known.sum() - len(photos)
            if not count:
                scores[:, to_score[:, None], classes] = 0
                continue
            for p, penalty in enumerate(penalties):
                ridge = np.full(len(square), penalty * count)
                ridge[-1] = 0
                system = square - squares[part] + np.diag(ridge)
                weights = scipy.linalg.solve(system, product - products[part], assume_a="pos")
                scores[p][np.ix_(to_score, classes)] = rows[to_score] @ weights
    return scores


def calibrated(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities float64 `[N, C]` of scores `[N, C]`, by a logistic curve of each class.

    Where a class is not told apart at all, so that the curve would fall, all photos have the same.
    """
    columns = []
    for score, label in zip(scores.T, labels.T, strict=True):
        scale = score.std() or 1.0
        x, is_known = (score - score.mean()) / scale, label != 0
        slope, offset = _logistic_curve(x[is_known], label[is_known] > 0)
        columns.append(_sigmoid(slope * x + offset))
    return np.stack(columns, axis=1)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over all known labels, of probabilities within (0, 1)."""
    of_given = np.where(labels > 0, probabilities, 1 - probabilities)[labels != 0]
    return float(-np.log(np.maximum(of_given, np.finfo(float).tiny)).mean())


def _logistic_curve(x: np.ndarray, is_present: np.ndarray) -> tuple[float, float]:
    """Slope, not below 0, and offset with the least log loss, by Newton's method.

    Of Platt's targets, which are not quite 0 and 1: so the slope is finite.
    """
    present, absent = np.count_nonzero(is_present), np.count_nonzero(~is_present)
    target = np.where(is_present, (present + 1) / (present + 2), 1 / (absent + 2))
    inputs = np.stack([x, np.ones(len(x))], axis=1)

    def loss(curve: np.ndarray) -> float:
        logits = inputs @ curve
        return float((np.logaddexp(0, logits) - target * logits).sum())

    start = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    curve, value = start, loss(start)
    while True:
        p = _sigmoid(inputs @ curve)
        curvature = (inputs.T * (p * (1 - p))) @ inputs + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (target - p))
        while (after := loss(curve + step)) > value and np.abs(step).max() > 1e-9:
            step /= 2
        if not after < value - 1e-9 * len(x):
            break
        curve, value = curve + step, after
    return tuple(curve.tolist()) if curve[0] > 0 else tuple(start.tolist())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))

"""Precision, recall and F1 of predicted labels, overall and by class."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits of any shape, float64."""
    return 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))


def predicted_labels(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Bool [N, C]: which logits reach the probability `threshold`.

    Compared in float32, the precision of the scores: the logit nearest to the threshold's counts as
    predicted, whichever way its last bit was rounded.
    """
    cutoff = np.float32(math.log(threshold) - math.log1p(-threshold))
    return np.asarray(scores, np.float32) >= cutoff


def top_labels(scores: np.ndarray, k: int, counted: np.ndarray) -> np.ndarray:
    """Bool [N, C]: which labels are among the `k` highest of their image.

    Of equal scores the class that comes first is taken. Labels that are not `counted` (bool [N, C])
    take no place, so that an ignored label moves no metric.
    """
    left = np.where(counted, scores, -np.inf)
    among = np.zeros(scores.shape, bool)
    for _ in range(min(k, scores.shape[1])):
        highest = left.argmax(axis=1, keepdims=True)  # the first of equal ones
        np.put_along_axis(among, highest, True, axis=1)
        np.put_along_axis(left, highest, -np.inf, axis=1)
    return among & counted


class Counts(NamedTuple):
    """How many labels of each class, int [C]."""

    hits: np.ndarray  # predicted and present
    predicted: np.ndarray
    positives: np.ndarray  # present


def count(predicted: np.ndarray, labels: np.ndarray) -> Counts:
    """What precision, recall and F1 are made of.

    Args:
        predicted: bool [N, C].
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
    """
    present = labels > 0
    sets = (predicted & present, predicted & (labels != 0), present)
    return Counts(*(np.count_nonzero(members, axis=0) for members in sets))


def precision_recall_f1(counts: Counts) -> dict[str, float]:
    """OP OR OF1 over all labels and CP CR CF1 CF1_macro over classes, in percent.

    A class nobody predicted has precision 0. The last four are of the classes with positives: CP
    and CR are means, CF1 = 2 CP CR / (CP + CR), and CF1_macro is the mean of the classes' F1.
    """
    overall = _precision_recall_f1(Counts(*(np.sum(per_class) for per_class in counts)))
    of_classes = [values[counts.positives > 0] for values in class_precision_recall_f1(counts)]
    precision, recall, macro = (values.mean() if len(values) else 0.0 for values in of_classes)
    by_class = precision, recall, _ratio(2 * precision * recall, precision + recall), macro
    names = ("OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_macro")
    return {
        name: 100 * float(value) for name, value in zip(names, (*overall, *by_class), strict=True)
    }


def class_precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, as fractions [C]; NaN where it has no positives."""
    none = counts.positives == 0
    precision, recall, f1 = (
        np.where(none, np.nan, values) for values in _precision_recall_f1(counts)
    )
    return precision, recall, f1


def sweep_thresholds(
    scores: np.ndarray, labels: np.ndarray, thresholds: Sequence[float]
) -> dict[str, float]:
    """The threshold with the highest CF1 + OF1 on these very scores, and its figures.

    Args:
        scores: [N, C], logits.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
        thresholds: logits, ascending; of equally good ones the first is taken.

    Returns:
        `threshold` (a logit) and `OP OR OF1 CP CR CF1 CF1_macro`.
    """
    num_classes, num_bins = scores.shape[1], len(thresholds) + 1
    cutoffs = np.array(thresholds, np.float32)  # compared as in `predicted_labels`
    bins = np.searchsorted(cutoffs, np.asarray(scores, np.float32), side="right")
    bins += num_bins * np.arange(num_classes)

    def reaching(members: np.ndarray) -> np.ndarray:
        """How many `members` (bool [N, C]) of each class reach each threshold, [T, C]."""
        histogram = np.bincount(bins[members], minlength=num_bins * num_classes)
        return histogram.reshape(num_classes, num_bins)[:, ::-1].cumsum(axis=1)[:, -2::-1].T

    present = labels > 0
    positives = np.count_nonzero(present, axis=0)
    figures = [
        precision_recall_f1(Counts(hits, predicted, positives))
        for hits, predicted in zip(reaching(present), reaching(labels != 0), strict=True)
    ]
    best = int(np.argmax([values["CF1"] + values["OF1"] for values in figures]))
    return {"threshold": float(thresholds[best]), **figures[best]}


def _precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    precision = _ratio(counts.hits, counts.predicted)
    recall = _ratio(counts.hits, counts.positives)
    return precision, recall, _ratio(2 * precision * recall, precision + recall)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)

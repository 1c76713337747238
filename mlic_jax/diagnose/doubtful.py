"""Which labels are probably wrong, by what a model says of photos that it was not trained on.

Confident learning (Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 2021) for every class by itself, as its multi-label form has it (Thyagarajan et al.,
"Identifying Incorrect Annotations in Multi-Label Classification Data", 2022). Written from the
papers. Labels are int8 `[N, C]` in {+1, 0, -1}, probabilities float `[N, C]`; where a label is
unknown (0) or a probability NaN, nothing is judged.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from mlic_jax.errors import UsageError
from mlic_jax.names import require_one_of

Kind = Literal["missing", "wrong"]

# Of the published aggregates: the weight of the next worse label, and how soft the minimum is.
WEIGHT, TEMPERATURE = 0.8, 0.1


class Doubt(NamedTuple):
    """A label that is probably not as it is given.

    Attributes:
        photo: its row.
        class_index: its column.
        kind: `missing`: given as absent, and probably present; `wrong`: the other way round.
        quality: how likely it is as it is given, in [0, 1].
    """

    photo: int
    class_index: int
    kind: Kind
    quality: float


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability of every label as it is given, its self-confidence; float64 `[N, C]`.

    NaN where nothing is judged. A label has two values, so the normalized margin of the papers,
    (given - other + 1) / 2, is the same.

    Raises:
        UsageError: the shapes differ, or there are other labels or probabilities.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise UsageError(
            f"labels {labels.shape} and probabilities {probabilities.shape} must both be [N, C]"
        )
    if not np.isin(labels, (-1, 0, 1)).all():
        raise UsageError("labels must be 1, 0 and -1")
    if not ((probabilities >= 0) & (probabilities <= 1) | np.isnan(probabilities)).all():
        raise UsageError("probabilities must be in [0, 1], or NaN where nothing is judged")
    given = np.where(labels > 0, probabilities, 1 - probabilities)
    return np.where(labels == 0, np.nan, given)


def class_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """From which probability on a class counts as present, and as absent; float64 `[2, C]`.

    The mean over the photos where it is given so: a rare class, of which a model is never sure, is
    held to what it says of that class. Infinite where no photo is.

    Raises:
        UsageError: see `label_quality`.
    """
    quality = label_quality(labels, probabilities)
    thresholds = []
    for is_given in (np.asarray(labels) > 0, np.asarray(labels) < 0):
        is_judged = is_given & ~np.isnan(quality)
        count = is_judged.sum(axis=0)
        mean = np.where(is_judged, quality, 0).sum(axis=0) / np.maximum(count, 1)
        thresholds.append(np.where(count > 0, mean, np.inf))
    return np.stack(thresholds)


def is_doubtful(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Bool `[N, C]`: which labels are counted as errors.

    Those whose other value is the likelier one, and reaches its threshold. Confident learning asks
    for the second alone: of a rare class, of which models are never sure, it counts many as missing
    that are not.

    Raises:
        UsageError: see `label_quality`.
    """
    quality = label_quality(labels, probabilities)
    present, absent = class_thresholds(labels, probabilities)
    of_other = np.where(np.asarray(labels) > 0, absent, present)
    return (quality < 0.5) & (1 - quality >= of_other)


def doubtful_labels(labels: np.ndarray, probabilities: np.ndarray) -> list[Doubt]:
    """The labels of `is_doubtful`, the most doubtful first; of equal ones in their order.

    Raises:
        UsageError: see `label_quality`.
    """
    quality = label_quality(labels, probabilities)
    photos, classes = np.nonzero(is_doubtful(labels, probabilities))
    found = quality[photos, classes]
    return [
        Doubt(
            int(photos[i]),
            int(classes[i]),
            "wrong" if labels[photos[i], classes[i]] > 0 else "missing",
            float(found[i]),
        )
        for i in np.argsort(found, kind="stable").tolist()
    ]


def photo_quality(quality: np.ndarray, aggregate: str = "softmin") -> np.ndarray:
    """How likely all labels of a photo are as they are given: one number of many, float64 `[N]`.

    Args:
        quality: of `label_quality`.
        aggregate: a key of `AGGREGATES`.

    Returns:
        In [0, 1]; NaN of a photo of which nothing is judged.

    Raises:
        UsageError: there is no such aggregate.
    """
    require_one_of("the aggregate", aggregate, AGGREGATES)
    is_judged = ~np.isnan(quality)
    found = np.full(len(quality), np.nan)
    rows = np.flatnonzero(is_judged.any(axis=1))
    found[rows] = AGGREGATES[aggregate](quality[rows])
    return found


def _moving_average(quality: np.ndarray) -> np.ndarray:
    """The exponential one from the best label to the worst, which so counts most."""
    descending = -np.sort(-quality, axis=1)  # NaN last
    average = descending[:, 0]
    for value in descending.T[1:]:
        average = np.where(np.isnan(value), average, WEIGHT * value + (1 - WEIGHT) * average)
    return average


def _softmin(quality: np.ndarray) -> np.ndarray:
    """The mean, weighted by how bad a label is."""
    worst = np.nanmin(quality, axis=1, keepdims=True)
    weights = np.exp((worst - quality) / TEMPERATURE)
    return np.nansum(weights * quality, axis=1) / np.nansum(weights, axis=1)


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "moving_average": _moving_average,
    "softmin": _softmin,
}

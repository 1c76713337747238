"""Methods of several runs each, compared: intervals over images and runs, Holm's correction, ranks.

What the luck of the images and of the runs changes is in the intervals: each resample draws the
images of the split again, the same for all methods, and the runs of each method (the bootstrap of
`significance.py` on both levels). Of few runs the spread is known badly: of three the interval is
too narrow by about a fifth in what comes from the runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from mlic_jax.errors import Failure
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.protocols import ApKind
from mlic_jax.metrics.significance import (
    LEVEL,
    RESAMPLES,
    interval,
    mean_over_classes,
    p_value,
    resampled_average_precision,
)


def compare_methods(
    runs: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    baseline: str | None,
    kind: ApKind = "raw",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """What each method is worth on a split, and against one of them.

    Args:
        runs: of each method, the scores `[N, C]` of each of its runs.
        labels: `[N, C]` in {+1, -1, 0}; entries that are 0 are left out.
        baseline: the method that the others are set against; None: none is.
        kind: of AP.
        resamples, seed: as of `significance.bootstrap_intervals`.

    Returns:
        For each method `mAP`, the mean of its `runs`, `deviation` of these (None of one run) and
        `interval`, in percent. Of all but the baseline also `difference`, its
        `difference_interval`, `p_value`, and `holm`, corrected for as many comparisons as there are
        (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979).

    Raises:
        Failure: no class has a positive label.
    """
    resampled = _resampled_means(runs, labels, kind, resamples, seed)
    found: dict[str, dict[str, Any]] = {}
    for method, scores in runs.items():
        of_runs = [_mean_ap(each, labels, kind) for each in scores]
        found[method] = {
            "mAP": float(np.mean(of_runs)),
            "runs": of_runs,
            "deviation": float(np.std(of_runs, ddof=1)) if len(of_runs) > 1 else None,
            "interval": interval(resampled[method]),
            "level": LEVEL,
        }
    if baseline is None:
        return found
    p_values = {}
    for method, values in found.items():
        if method != baseline:
            differences = resampled[method] - resampled[baseline]
            values["difference"] = values["mAP"] - found[baseline]["mAP"]
            values["difference_interval"] = interval(differences)
            values["p_value"] = p_values[method] = p_value(differences)
    for method, corrected in holm(p_values).items():
        found[method]["holm"] = corrected
    return found


def _resampled_means(
    runs: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    kind: ApKind,
    resamples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """The mean mAP `[R]` of the runs of each method, of images and runs that are drawn again."""
    flat = [each for scores in runs.values() for each in scores]
    means = iter(resampled_average_precision(flat, labels, kind, resamples, seed))
    rng = np.random.default_rng((seed, 1))
    found = {}
    for method, scores in runs.items():
        of_runs = np.stack([mean_over_classes(next(means)) for _ in scores])  # [K, R]
        drawn = rng.integers(len(scores), size=of_runs.shape)
        found[method] = np.take_along_axis(of_runs, drawn, axis=0).mean(axis=0)
    return found


def _mean_ap(scores: np.ndarray, labels: np.ndarray, kind: ApKind) -> float:
    whole = mean_average_precision(average_precision(scores, labels, kind))
    if whole is None:
        raise Failure("no class has a positive label: average precision is undefined")
    return whole


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrected p values: the k-th least of m times m - k + 1, never below one before, at most 1.

    Below 0.05 they can be taken together: one of them is wrong in at most 5 % of such families.
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for k, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - k) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The mean rank `[M]` of methods by their values `[blocks, M]`: 1 is best, ties share."""
    return scipy.stats.rankdata(-values, axis=1).mean(axis=0)


def critical_difference(methods: int, blocks: int) -> float:
    """By how much two mean ranks must differ to be told apart at 5 % (Nemenyi).

    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", 2006, section 3.2.2.
    """
    quantile = scipy.stats.studentized_range.ppf(LEVEL / 100, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * blocks)))

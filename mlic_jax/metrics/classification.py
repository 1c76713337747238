"""What scores are worth: average precision, precision, recall and F1 of multi-label predictions.

NumPy in float64 and scikit-learn only. A protocol is a row of `PROTOCOLS`: a name for the choices
that make two published figures comparable. Every figure is in percent.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from mlic_jax.data.label_policy import LabelPolicy, resolve_unknown
from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.average_precision import (
    ap_of_rankings,
    check_ap,
    checked_mask,
    expected_average_precision,
    mean_average_precision,
    rank,
    tie_bounds,
)
from mlic_jax.metrics.precision_recall import (
    class_precision_recall_f1,
    count,
    precision_recall_f1,
    predicted_labels,
    sweep_thresholds,
    top_labels,
)
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.metrics.ranking import ranking_metrics
from mlic_jax.metrics.ties import (
    Ties,
)
from mlic_jax.names import require_one_of


def evaluate_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    protocol: str = "mcar",
    *,
    class_names: Sequence[str] | None = None,
    label_policy: LabelPolicy | None = None,
    ties: Ties | None = None,
    frequent: np.ndarray | None = None,
) -> dict[str, Any]:
    """Every metric of a protocol, ready for JSON.

    Args:
        scores: float32 [N, C], logits. Only the threshold depends on their being logits.
        labels: [N, C] in {+1 present, -1 absent, 0 unknown}.
        protocol: a key of `PROTOCOLS`.
        class_names: [C], for messages and for the result; by default "0", "1", ...
        label_policy: what unknown labels count as everywhere, instead of the protocol's choices.
        ties: how equal scores rank, instead of the protocol's choice; see `average_precision`.
        frequent: bool [C]; adds `mAP_frequent`, the mean over these classes. On a small set the AP
            of a class with one positive is little more than noise.

    Returns:
        `mAP`, `AP` (a list; None for a class without positives, which no class mean includes and
        `classes_without_positives` names), `chance` (the expected mAP of a random ranking, by AP
        `raw`; the other kinds are above it), `prevalence` (the mean share of positives, which
        `chance` approaches as N grows);
        `tied`, what the order of equal scores decides: `mAP` [worst, best] and of each class `AP`,
        such a pair, or None where it decides nothing;
        `OP OR OF1` (overall) and `CP CR CF1` (mean over classes) of the labels at or above the
        threshold, `CF1_macro` (the mean of the classes' F1), and `OP_3` ... of those that are also
        among the three highest of their image; `P R F1` of each class (None without positives);
        and what they were computed from. `class_f1` names the protocol's own CF1.

        Where the protocol sweeps, `swept` holds the best `threshold` (a logit) for these very
        scores and its `OP` ...: an upper bound, not what a threshold known beforehand achieves.
        Where it ranks, `coverage_error`, `label_ranking_average_precision` and `ranking_loss`.

    Raises:
        UsageError: unknown protocol or label policy, shapes that do not fit together.
        Failure: scores or labels outside their range, or nothing to evaluate.
    """
    require_one_of("protocol", protocol, PROTOCOLS)
    choices = PROTOCOLS[protocol]
    unknown_in_ap = label_policy or choices.unknown_in_ap
    unknown_in_f1 = label_policy or choices.unknown_in_f1
    scores, labels, names = checked_scores(scores, labels, class_names)

    ap_labels = resolve_unknown(labels, unknown_in_ap)
    ties = ties or choices.ties
    check_ap(choices.ap_kind, ties)
    rankings = rank(scores, ap_labels)
    ap = ap_of_rankings(rankings, choices.ap_kind, ties)
    positives, counted = (ap_labels > 0).sum(axis=0), (ap_labels != 0).sum(axis=0)
    has_ap = positives > 0
    if not has_ap.any():
        raise Failure("no class has a positive label: average precision is undefined")
    without = [name for name, defined in zip(names, has_ap, strict=True) if not defined]
    if without:
        logging.warning(
            "%d of %d classes have no positive label and are left out of class means: %s",
            len(without),
            len(names),
            ", ".join(without),
        )
    chance = expected_average_precision(positives[has_ap], counted[has_ap])
    result = {
        "protocol": protocol,
        "threshold": choices.threshold,
        "top_k": choices.top_k,
        "ap_kind": choices.ap_kind,
        "ties": ties,
        "class_f1": choices.class_f1,
        "unknown_in_ap": unknown_in_ap,
        "unknown_in_f1": unknown_in_f1,
        "num_images": len(scores),
        "num_classes": len(names),
        "mAP": mean_average_precision(ap),
        "chance": 100 * float(chance.mean()),
        "prevalence": 100 * float((positives[has_ap] / counted[has_ap]).mean()),
    }
    if frequent is not None:
        frequent = checked_mask(frequent, len(names)) & has_ap
        result["mAP_frequent"] = mean_average_precision(ap, frequent)
        result["num_frequent"] = int(frequent.sum())

    f1_labels = resolve_unknown(labels, unknown_in_f1)
    predicted = predicted_labels(scores, choices.threshold)
    among_top = top_labels(scores, choices.top_k, f1_labels != 0)
    counts = count(predicted, f1_labels)
    result |= precision_recall_f1(counts)
    top = precision_recall_f1(count(predicted & among_top, f1_labels))
    result |= {f"{name}_{choices.top_k}": value for name, value in top.items()}
    if choices.sweep:
        result["swept"] = sweep_thresholds(scores, f1_labels, choices.sweep)
    if choices.ranking:
        result |= ranking_metrics(scores, ap_labels)
    by_class = zip(("P", "R", "F1"), class_precision_recall_f1(counts), strict=True)
    return result | {
        "class_names": names,
        "AP": _undefined_as_none(ap),
        "tied": tie_bounds(rankings, choices.ap_kind, ap),
        **{name: _undefined_as_none(100 * values) for name, values in by_class},
        "positives": positives.tolist(),
        "classes_without_positives": without,
    }


def checked_scores(
    scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores in float32 (or as precise as they came), labels int8, a name a class.

    Raises:
        UsageError: shapes that do not fit together.
        Failure: scores or labels outside their range, or nothing to evaluate.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise UsageError(
            "scores and labels must both be [images, classes]; "
            f"they are {list(scores.shape)} and {list(labels.shape)}"
        )
    if scores.size == 0:
        raise Failure(f"nothing to evaluate: the scores are of shape {list(scores.shape)}")
    scores = scores.astype(np.result_type(scores.dtype, np.float32), copy=False)
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        image, c = bad[0]
        raise Failure(
            f"{len(bad)} scores are not finite, the first is {scores[image, c]} "
            f"(image {image}, class {c}): the model has diverged or the score file is damaged"
        )
    outside = ~np.isin(labels, (-1, 0, 1))
    if outside.any():
        raise Failure(
            f"labels must be +1 (present), -1 (absent) or 0 (unknown); found {labels[outside][0]}"
        )
    names = [str(c) for c in range(scores.shape[1])] if class_names is None else class_names
    if len(names) != scores.shape[1]:
        raise UsageError(f"{len(names)} class names for {scores.shape[1]} classes of scores")
    return scores, labels.astype(np.int8, copy=False), [str(name) for name in names]


def _undefined_as_none(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]

"""What scores are worth: average precision, precision, recall and F1 of multi-label predictions.

NumPy in float64 and scikit-learn only. A protocol is a row of `PROTOCOLS`: a name for the choices
that make two published figures comparable. Every figure is in percent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn.metrics
from absl import logging

from mlic_jax.data.label_policy import LabelPolicy, resolve_unknown
from mlic_jax.errors import Failure, UsageError


@dataclass(frozen=True)
class Protocol:
    """The choices behind a set of published figures.

    AP is the mean of the precision at each positive ("raw"). A label counts as predicted at a
    probability of at least `threshold`. `unknown_in_ap` and `unknown_in_f1` say what a label 0
    counts as in AP and in precision, recall and F1.
    """

    name: str
    threshold: float
    top_k: int = 3
    unknown_in_ap: LabelPolicy = "ignore"
    unknown_in_f1: LabelPolicy = "as_negative"


PROTOCOLS = {row.name: row for row in (Protocol("mcar", threshold=0.6),)}  # MCAR (TIP 2021)


def evaluate_scores(
    scores: np.ndarray,
    labels: np.ndarray,
    protocol: str = "mcar",
    *,
    class_names: Sequence[str] | None = None,
    label_policy: LabelPolicy | None = None,
    frequent: np.ndarray | None = None,
) -> dict[str, Any]:
    """Every metric of a protocol, ready for JSON.

    Args:
        scores: float32 [N, C], logits. Only the threshold depends on their being logits.
        labels: [N, C] in {+1 present, -1 absent, 0 unknown}.
        protocol: a key of `PROTOCOLS`.
        class_names: [C], for messages and for the result; by default "0", "1", ...
        label_policy: what unknown labels count as everywhere, instead of the protocol's choices.
        frequent: bool [C]; adds `mAP_frequent`, the mean over these classes. On a small set the AP
            of a class with one positive is little more than noise.

    Returns:
        `mAP`, `AP` (a list; None for a class without positives, which no class mean includes and
        `classes_without_positives` names), `chance` (the expected mAP of a random ranking),
        `prevalence` (the mean share of positives, which `chance` approaches as N grows);
        `OP OR OF1` (overall) and `CP CR CF1` (mean over classes) of the labels at or above the
        threshold, and `OP_3` ... of those that are also among the three highest of their image;
        and what they were computed from.

    Raises:
        UsageError: unknown protocol or label policy, shapes that do not fit together.
        Failure: scores or labels outside their range, or nothing to evaluate.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; known: {', '.join(sorted(PROTOCOLS))}")
    choices = PROTOCOLS[protocol]
    unknown_in_ap = label_policy or choices.unknown_in_ap
    unknown_in_f1 = label_policy or choices.unknown_in_f1
    scores, labels, names = _checked(scores, labels, class_names)

    ap_labels = resolve_unknown(labels, unknown_in_ap)
    ap = average_precision(scores, ap_labels)
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
        "unknown_in_ap": unknown_in_ap,
        "unknown_in_f1": unknown_in_f1,
        "num_images": len(scores),
        "num_classes": len(names),
        "mAP": mean_average_precision(ap),
        "chance": 100 * float(chance.mean()),
        "prevalence": 100 * float((positives[has_ap] / counted[has_ap]).mean()),
    }
    if frequent is not None:
        frequent = _checked_mask(frequent, len(names)) & has_ap
        result["mAP_frequent"] = mean_average_precision(ap, frequent)
        result["num_frequent"] = int(frequent.sum())

    f1_labels = resolve_unknown(labels, unknown_in_f1)
    predicted = predicted_labels(scores, choices.threshold)
    among_top = top_labels(scores, choices.top_k, f1_labels != 0)
    result |= precision_recall_f1(predicted, f1_labels)
    top = precision_recall_f1(predicted & among_top, f1_labels)
    result |= {f"{name}_{choices.top_k}": value for name, value in top.items()}
    return result | {
        "class_names": names,
        "AP": [None if math.isnan(value) else value for value in ap.tolist()],
        "positives": positives.tolist(),
        "classes_without_positives": without,
    }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP `raw` of each class, in percent: the mean of the precision at each of its positives.

    Ranked by descending score; equal scores keep the order of the images.

    Args:
        scores: [N, C], finite.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.

    Returns:
        float64 [C]; NaN where a class has no positive.
    """
    ap = np.full(scores.shape[1], np.nan)
    for c, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        known = label != 0
        hits = label[known][np.argsort(-score[known], kind="stable")] > 0
        if hits.any():
            ranks = np.flatnonzero(hits) + 1
            ap[c] = 100 * np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return ap


def mean_average_precision(
    ap: np.ndarray | Sequence[float | None], selected: np.ndarray | None = None
) -> float | None:
    """The mean of the APs [C] that are defined (not NaN, not None), among `selected` (bool [C]).

    None where there is none.
    """
    ap = np.asarray(ap, np.float64)
    if selected is not None:
        ap = ap[_checked_mask(selected, len(ap))]
    ap = ap[~np.isnan(ap)]
    return float(ap.mean()) if len(ap) else None


def expected_average_precision(positives: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The expectation of AP `raw`, as a fraction, of a ranking drawn at random.

    A positive stands at rank k = 1..N with equal probability, and each of the k - 1 places before
    it then holds one of the other P - 1 positives with probability (P - 1) / (N - 1). The mean of
    (1 + (k - 1) (P - 1) / (N - 1)) / k over k is the result. It tends to P / N as N grows, but for
    one positive among 64 images it is 7.4%, not 1.6%.

    Args:
        positives: int [C], P, at least 1.
        images: int [C], N, the labels that are known.
    """
    positives, images = np.asarray(positives, np.float64), np.asarray(images)
    harmonic = np.cumsum(1 / np.arange(1, images.max() + 1))[images - 1]
    others = (positives - 1) / np.maximum(images - 1, 1)
    return (harmonic + others * (images - harmonic)) / images


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
    descending = np.argsort(np.where(counted, -scores, np.inf), axis=1, kind="stable")
    among = np.zeros(scores.shape, bool)
    np.put_along_axis(among, descending[:, :k], True, axis=1)
    return among & counted


def precision_recall_f1(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """OP OR OF1 over all labels and CP CR CF1 over classes, in percent.

    A class nobody predicted has precision 0. CP and CR are means over the classes with positives,
    and CF1 = 2 CP CR / (CP + CR).

    Args:
        predicted: bool [N, C].
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
    """
    predicted_count = (predicted & (labels != 0)).sum(axis=0)
    positive_count = (labels > 0).sum(axis=0)
    hits = (predicted & (labels > 0)).sum(axis=0)
    overall = _ratio(hits.sum(), predicted_count.sum()), _ratio(hits.sum(), positive_count.sum())
    some = positive_count > 0
    by_class = [
        float(_ratio(hits[some], count[some]).mean()) if some.any() else 0.0
        for count in (predicted_count, positive_count)
    ]
    result = {}
    for letter, (precision, recall) in (("O", overall), ("C", by_class)):
        f1 = _ratio(2 * precision * recall, precision + recall)
        for name, value in (("P", precision), ("R", recall), ("F1", f1)):
            result[letter + name] = 100 * float(value)
    return result


def precision_recall_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as fractions, at every threshold; recall descends to 0.

    Args:
        scores: any shape; one curve over all entries.
        labels: the same shape, in {+1, -1, 0}; entries that are 0 are left out. At least one +1.
    """
    known = labels != 0
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels[known] > 0, scores[known])
    return precision, recall


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _checked(
    scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores in float32 (or as precise as they came), labels int8, a name a class; or one error."""
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


def _checked_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (num_classes,):
        raise UsageError(
            f"a mask of classes must be bool [{num_classes}]; it is {mask.dtype} {list(mask.shape)}"
        )
    return mask

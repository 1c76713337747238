"""What scores are worth: average precision, precision, recall and F1 of multi-label predictions.

NumPy in float64 and scikit-learn only. A protocol is a row of `PROTOCOLS`: a name for the choices
that make two published figures comparable. Every figure is in percent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import sklearn.metrics
from absl import logging

from mlic_jax.data.label_policy import LabelPolicy, resolve_unknown
from mlic_jax.errors import Failure, UsageError
from mlic_jax.metrics.ranking import ranking_metrics
from mlic_jax.metrics.ties import (
    TIES,
    Ties,
    are_mixed,
    blocks_of,
    expected_precision,
    sorted_in_blocks,
)

ApKind = Literal["raw", "envelope", "voc11"]


@dataclass(frozen=True)
class Protocol:
    """The choices behind a set of published figures."""

    name: str
    threshold: float  # the probability from which on a label counts as predicted
    top_k: int = 3  # the second set of figures: predicted, and among so many highest of its image
    ap_kind: ApKind = "raw"  # see `average_precision`
    ties: Ties = "stable"  # see `average_precision`
    class_f1: Literal["CF1", "CF1_macro"] = "CF1"  # the one its authors call CF1
    unknown_in_ap: LabelPolicy = "ignore"  # what a label 0 counts as in AP and ranking metrics
    unknown_in_f1: LabelPolicy = "as_negative"  # ... and in precision, recall and F1
    sweep: tuple[float, ...] = ()  # logits; the best threshold among them is reported beside
    ranking: bool = False  # whether coverage error, LRAP and ranking loss are reported


PROTOCOLS = {
    row.name: row
    for row in (
        Protocol("mcar", threshold=0.6),  # MCAR (TIP 2021)
        # MSRN's own figures are swept; those at logit 0, its threshold for top-3, stand beside.
        Protocol("msrn", threshold=0.5, sweep=tuple(k / 10 for k in range(-10, 10)), ranking=True),
        # ML-GCN (CVPR 2019): logit 0. (Its code counts one false prediction more in OP for each
        # class that nobody predicted; here there is none.)
        Protocol("mlgcn", threshold=0.5),
        # ASL (ICCV 2021): the threshold of its validation. It knows present and absent alone, so
        # whatever is not present is absent.
        Protocol("asl", threshold=0.8, class_f1="CF1_macro", unknown_in_ap="as_negative"),
        # Query2Label (2021) publishes no threshold: the customary one. Not present is absent.
        Protocol("q2l", threshold=0.5, ap_kind="envelope", unknown_in_ap="as_negative"),
        # The VOC 2007 devkit has AP alone, without the difficult; the rest is customary.
        Protocol("voc2007", threshold=0.5, ap_kind="voc11", unknown_in_f1="ignore"),
    )
}


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
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; known: {', '.join(sorted(PROTOCOLS))}")
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
        frequent = _checked_mask(frequent, len(names)) & has_ap
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


def average_precision(
    scores: np.ndarray, labels: np.ndarray, kind: ApKind = "raw", ties: Ties = "stable"
) -> np.ndarray:
    """AP of each class, in percent.

    Ranked by descending score. With the precision at every positive, in the order of the ranks, AP
    is

    - `raw`: their mean (MCAR, MSRN, ML-GCN, ASL);
    - `envelope`: the mean after each was raised to the highest at its rank or later, which is the
      area under the interpolated curve (VOC 2010 and later, Query2Label);
    - `voc11`: the mean over the recalls 0, 0.1, ..., 1 of the highest precision at that recall or
      more (VOC 2007).

    Equal scores keep the order of the images (`stable`, as all these do), or have their best or
    worst order (`optimistic`, `pessimistic`); `average` is the expectation over all orders.

    Args:
        scores: [N, C], finite.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
        kind: which of the three.
        ties: which of the four.

    Returns:
        float64 [C]; NaN where a class has no positive.

    Raises:
        UsageError: an unknown kind; `average` of another kind than `raw`.
    """
    check_ap(kind, ties)
    return ap_of_rankings(rank(scores, labels), kind, ties)


def check_ap(kind: ApKind, ties: Ties) -> None:
    """Raises UsageError for an unknown kind, or `average` of another than `raw`."""
    for what, value, known in (("kind of AP", kind, get_args(ApKind)), ("ties", ties, TIES)):
        if value not in known:
            raise UsageError(f"{what} is {value!r}; known are {', '.join(known)}")
    if ties == "average" and kind != "raw":
        raise UsageError(f"ties average is for AP raw, not {kind}; pessimistic is for all kinds")


class Ranking(NamedTuple):
    """What is known of a class, by descending score, ties in the order of the images."""

    scores: np.ndarray  # [M]
    positive: np.ndarray  # bool [M]


def rank(scores: np.ndarray, labels: np.ndarray) -> list[Ranking]:
    """The ranking of each class; arguments as for `average_precision`."""
    rankings = []
    for score, label in zip(scores.T, labels.T, strict=True):
        images = ranked_images(score, label)
        rankings.append(Ranking(score[images], label[images] > 0))
    return rankings


def ap_of_rankings(rankings: Sequence[Ranking], kind: ApKind, ties: Ties) -> np.ndarray:
    """`average_precision` of what is ranked already."""
    ap = np.full(len(rankings), np.nan)
    for c, (scores, positive) in enumerate(rankings):
        if not positive.any():
            continue
        if ties == "average":
            ap[c] = 100 * expected_precision(blocks_of(scores), positive)
            continue
        if ties != "stable":
            positive = sorted_in_blocks(blocks_of(scores), positive, ties)
        ap[c] = 100 * _precision_of_ranks(np.flatnonzero(positive) + 1, kind)
    return ap


def _precision_of_ranks(ranks: np.ndarray, kind: ApKind) -> float:
    """AP as a fraction, from the ranks of the positives, ascending."""
    precision = np.arange(1, len(ranks) + 1) / ranks
    if kind != "raw":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if kind == "voc11":
        # The first positive at which hits / positives >= tenth / 10, in whole numbers.
        first = -(-np.arange(11) * len(ranks) // 10)
        precision = precision[np.maximum(first - 1, 0)]
    return precision.mean()


def tie_bounds(rankings: Sequence[Ranking], kind: ApKind, ap: np.ndarray) -> dict[str, Any]:
    """Between what the order of equal scores decides.

    Args:
        rankings: of `rank`.
        kind: of `average_precision`.
        ap: [C], what it gave.

    Returns:
        `mAP` [worst, best], and `AP`: of each class such a pair, None where it decides nothing.
    """
    bounds = np.stack([ap, ap])
    pairs: list[list[float] | None] = [None] * len(ap)
    for c, ranking in enumerate(rankings):
        if not np.isnan(ap[c]) and are_mixed(*ranking):
            bounds[:, c] = [
                ap_of_rankings([ranking], kind, ties)[0] for ties in ("pessimistic", "optimistic")
            ]
            pairs[c] = bounds[:, c].tolist()
    return {"mAP": [mean_average_precision(bound) for bound in bounds], "AP": pairs}


def ranked_images(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The images [M] whose `label` [N] is not 0, by descending `score` [N], ties in their order."""
    known = np.flatnonzero(label)
    descending = 0 - score[known]  # where zero has no sign
    if descending.dtype != np.float32:
        return known[np.argsort(descending, kind="stable")]
    # Whole numbers that order as these do, the position in their lower half: NumPy sorts them
    # several times faster than it finds a stable order of floats.
    bits = descending.view(np.uint32)
    bits ^= np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    keys = bits.astype(np.uint64) << np.uint64(32) | np.arange(len(bits), dtype=np.uint64)
    return known[np.sort(keys) & np.uint64(0xFFFFFFFF)]


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
    by_class = [values[counts.positives > 0] for values in class_precision_recall_f1(counts)]
    precision, recall, macro = (values.mean() if len(values) else 0.0 for values in by_class)
    by_class = precision, recall, _ratio(2 * precision * recall, precision + recall), macro
    names = ("OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_macro")
    return {
        name: 100 * float(value) for name, value in zip(names, (*overall, *by_class), strict=True)
    }


def class_precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, as fractions [C]; NaN where it has no positives."""
    none = counts.positives == 0
    return tuple(np.where(none, np.nan, values) for values in _precision_recall_f1(counts))


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


def precision_recall_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as fractions, at every threshold; recall descends to 0.

    Args:
        scores: any shape; one curve over all entries.
        labels: the same shape, in {+1, -1, 0}; entries that are 0 are left out. At least one +1.
    """
    known = labels != 0
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels[known] > 0, scores[known])
    return precision, recall


def _precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    precision = _ratio(counts.hits, counts.predicted)
    recall = _ratio(counts.hits, counts.positives)
    return precision, recall, _ratio(2 * precision * recall, precision + recall)


def _undefined_as_none(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _checked_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (num_classes,):
        raise UsageError(
            f"a mask of classes must be bool [{num_classes}]; it is {mask.dtype} {list(mask.shape)}"
        )
    return mask

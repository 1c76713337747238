"""Average precision of every class, as each protocol means it, and what ties decide of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import sklearn.metrics

from mlic_jax.errors import UsageError
from mlic_jax.metrics.protocols import ApKind
from mlic_jax.metrics.ties import (
    TIES,
    Ties,
    are_mixed,
    blocks_of,
    expected_precision,
    sorted_in_blocks,
)
from mlic_jax.names import require_one_of


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
        require_one_of(what, value, known)
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
    values = np.asarray(ap, np.float64)
    if selected is not None:
        values = values[checked_mask(selected, len(values))]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


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


def precision_recall_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as fractions, at every threshold; recall descends to 0.

    Args:
        scores: any shape; one curve over all entries.
        labels: the same shape, in {+1, -1, 0}; entries that are 0 are left out. At least one +1.
    """
    known = labels != 0
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels[known] > 0, scores[known])
    return precision, recall


def checked_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (num_classes,):
        raise UsageError(
            f"a mask of classes must be bool [{num_classes}]; it is {mask.dtype} {list(mask.shape)}"
        )
    return mask

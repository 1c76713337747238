"""Figures of a diagnosis, from scores and labels alone: as JSON holds them, shares in percent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.costs import average_precision_costs, mean_costs
from mlic_jax.metrics.localisation import SIZES, Looks, size_of

MOST_LABELS = 6  # photos with at least so many are one group
MOST_NAMED, LEAST_COST = 3, 0.01  # labels of a photo that cost most, and percent of their AP


def percent(part: float, whole: float) -> float | None:
    """None of nothing."""
    return 100 * float(part) / float(whole) if whole else None


def recall_by_size(looks: Looks, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of the present classes that have boxes, by the size of their largest: all and by class.

    Args:
        looks: of N images; what it says of regions is not used.
        predicted: bool [N, C].
        names: of the C classes.
    """
    found, sizes = predicted[looks.images, looks.classes], size_of(looks.shares)

    def of(rows: np.ndarray) -> dict[str, Any]:
        return {
            name: {
                "objects": int((rows & (sizes == k)).sum()),
                "recall": percent((rows & found & (sizes == k)).sum(), (rows & (sizes == k)).sum()),
            }
            for k, name in enumerate(SIZES)
        }

    by_class = {name: of(looks.classes == c) for c, name in enumerate(names)}
    return {**of(np.ones(len(found), bool)), "by_class": by_class}


def by_number_of_labels(predicted: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Precision and recall of photos with so many present labels, of all from `MOST_LABELS` on.

    Args:
        predicted: bool [N, C].
        labels: [N, C] in {+1, 0, -1}; entries that are 0 do not count.
    """
    present, counted = labels > 0, predicted & (labels != 0)
    numbers = np.minimum(present.sum(axis=1), MOST_LABELS)
    rows = []
    for number in np.unique(numbers):
        of = numbers == number
        hits = int((counted & present)[of].sum())
        rows.append(
            {
                "labels": int(number),
                "or_more": int(number) == MOST_LABELS,
                "photos": int(of.sum()),
                "predicted": percent(counted[of].sum(), 100 * of.sum()),
                "precision": percent(hits, counted[of].sum()),
                "recall": percent(hits, present[of].sum()),
            }
        )
    return rows


def confidence(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """What is promised and what is true, by class, in percent; unknown labels do not count.

    Args:
        probabilities: [N, C].
        predicted: bool [N, C].
        labels: [N, C] in {+1, 0, -1}.
        names: of the C classes.

    Returns:
        Of each class the mean probability and the `frequency` of the label, the same of those that
        are predicted (`promised` and `kept`), and their differences, `excess` and `boast`.
    """
    known = labels != 0
    rows = []
    for c, name in enumerate(names):
        mean, frequency = _mean(probabilities[:, c], labels[:, c], known[:, c])
        promised, kept = _mean(probabilities[:, c], labels[:, c], known[:, c] & predicted[:, c])
        rows.append(
            {
                "name": name,
                "probability": mean,
                "frequency": frequency,
                "excess": _difference(mean, frequency),
                "predicted": int((known & predicted)[:, c].sum()),
                "promised": promised,
                "kept": kept,
                "boast": _difference(promised, kept),
            }
        )
    return rows


def _mean(
    probabilities: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> tuple[float | None, float | None]:
    count = rows.sum()
    return percent(probabilities[rows].sum(), count), percent((labels[rows] > 0).sum(), count)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def costliest(
    costs: np.ndarray, labels: np.ndarray, ids: Sequence[str], names: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """The photos that cost most of the mAP, the first the most, with the labels that do.

    Args:
        costs: [N, C], of `average_precision_costs`.
        labels: [N, C]; ids: of the N photos; names: of the C classes.
        most: photos.
    """
    of_photos = mean_costs(costs)
    order = np.argsort(-of_photos, kind="stable")[:most]
    return [
        {
            "photo": i,
            "id": ids[i],
            "cost": float(of_photos[i]),
            "labels": [
                {
                    "name": names[c],
                    "AP": float(costs[i, c]),
                    "kind": "ranked too low" if labels[i, c] > 0 else "ranked too high",
                }
                for c in np.argsort(-np.nan_to_num(costs[i]), kind="stable")[:MOST_NAMED]
                if costs[i, c] >= LEAST_COST
            ],
        }
        for i in order.tolist()
        if of_photos[i] > 0
    ]


def second_look(
    streams: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    labels: np.ndarray,
    ids: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any] | None:
    """What a second look gained and lost, by class and photo by photo; None of one look.

    Args:
        streams: logits [N, C]: `global`, of the first look alone, and `final`.
        predicted: bool [N, C] of both.
        labels: [N, C] in {+1, 0, -1}; entries that are 0 do not count.
        ids: of the N photos.
        names: of the C classes.

    Returns:
        `mAP` of both streams; `gained`, how many labels the second look puts right, and `lost`,
        how many it puts wrong; these `by_class`, with the AP; and `by_photo` their names and the
        `points` of mAP that the photo costs less (see `average_precision_costs`), of all photos
        in which anything changed, the most gained first.
    """
    if "global" not in streams:
        return None
    present, known = labels > 0, labels != 0
    was, now = (predicted[name] == present for name in ("global", "final"))
    gained, lost = ~was & now & known, was & ~now & known
    first, final = (average_precision_costs(streams[name], labels) for name in ("global", "final"))
    points = mean_costs(first) - mean_costs(final)
    aps = [average_precision(streams[name], labels) for name in ("global", "final")]
    changed = np.flatnonzero(gained.any(axis=1) | lost.any(axis=1) | (points != 0))

    def named(row: np.ndarray) -> list[str]:
        return [names[c] for c in np.flatnonzero(row).tolist()]

    return {
        "mAP": [mean_average_precision(ap) for ap in aps],
        "gained": int(gained.sum()),
        "lost": int(lost.sum()),
        "by_class": [
            {
                "name": name,
                "gained": int(gained[:, c].sum()),
                "lost": int(lost[:, c].sum()),
                "AP": [None if np.isnan(ap[c]) else float(ap[c]) for ap in aps],
            }
            for c, name in enumerate(names)
        ],
        "by_photo": [
            {
                "photo": i,
                "id": ids[i],
                "points": float(points[i]),
                "gained": named(gained[i]),
                "lost": named(lost[i]),
            }
            for i in changed[np.argsort(-points[changed], kind="stable")].tolist()
        ],
    }

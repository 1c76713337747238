"""How well the labels of an image are ordered: metrics of rows, where AP ranks columns."""

import numpy as np


def ranking_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Coverage error, label ranking average precision and ranking loss: means over the images.

    Scikit-learn's definitions, and labels that are 0 are left out. With r the number of labels of
    an image whose score reaches that of a present label, and l the number of the present ones
    among them:

    - `coverage_error`: the largest r, 0 where no label is present; in labels.
    - `label_ranking_average_precision`: the mean of l / r, 1 where none or all are present; in
      percent.
    - `ranking_loss`: the share of pairs of a present and an absent label where the absent one
      scores as much or more, 0 where there is no such pair; in percent.

    The three are surveyed by Tsoumakas, Katakis and Vlahavas, "Mining Multi-label Data" (2010).

    Args:
        scores: [N, C], finite.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.
    """
    num_classes = scores.shape[1]
    order = np.argsort(np.where(labels == 0, np.inf, -scores), axis=1, kind="stable")
    ranked_scores = np.take_along_axis(scores, order, axis=1)
    ranked_labels = np.take_along_axis(labels, order, axis=1)
    known, present = ranked_labels != 0, ranked_labels > 0

    # Equal scores share the place of the last of them; the places of unknown labels count nothing.
    last = np.ones(scores.shape, bool)
    last[:, :-1] = (ranked_scores[:, 1:] != ranked_scores[:, :-1]) | ~known[:, 1:]
    place = np.where(last, np.arange(num_classes), num_classes)
    place = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]
    reached = place + 1
    reached_present = np.take_along_axis(np.cumsum(present, axis=1), place, axis=1)

    num_present = present.sum(axis=1)
    num_absent = known.sum(axis=1) - num_present
    both = (num_present > 0) & (num_absent > 0)
    coverage = np.where(present, reached, 0).max(axis=1)
    precision = np.ones(len(scores))
    precision[both] = (
        np.where(present, reached_present / reached, 0).sum(axis=1)[both] / num_present[both]
    )
    loss = np.zeros(len(scores))
    wrong_pairs = np.where(present, reached - reached_present, 0).sum(axis=1)
    loss[both] = wrong_pairs[both] / (num_present[both] * num_absent[both])
    return {
        "coverage_error": float(coverage.mean()),
        "label_ranking_average_precision": 100 * float(precision.mean()),
        "ranking_loss": 100 * float(loss.mean()),
    }

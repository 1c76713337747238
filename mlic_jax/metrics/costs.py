"""What each photo costs: the average precision that there would be if it stood where it belongs."""

import numpy as np

from mlic_jax.metrics.average_precision import ranked_images


def average_precision_costs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each image and class, by how much AP `raw` would rise if the image were ranked right.

    That is, if it alone were moved, where it is present to the top, and where it is absent to the
    end, while the others keep their order. Equal scores keep the order of the images.

    Args:
        scores: [N, C], finite.
        labels: [N, C] in {+1, -1, 0}; entries that are 0 are left out.

    Returns:
        float64 [N, C], percent, at least 0; 0 where the label is left out, NaN where the class has
        no positive.
    """
    costs = np.zeros(scores.shape)
    for c, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        images = ranked_images(score, label)
        positive = label[images] > 0
        if not positive.any():
            costs[:, c] = np.nan
            continue
        rank = np.arange(1, len(images) + 1)
        hits = np.cumsum(positive)
        # To the top: it is right itself, and every positive that stood before it comes one later
        # with one hit more. To the end: every positive that stood behind it comes one earlier.
        later = positive * (rank - hits) / (rank * (rank + 1))
        earlier = positive * hits / (rank * np.maximum(rank - 1, 1))
        to_top = 1 - hits / rank + np.cumsum(later) - later
        to_end = np.cumsum(earlier[::-1])[::-1] - earlier
        costs[images, c] = 100 * np.where(positive, to_top, to_end) / hits[-1]
    return costs


def mean_costs(costs: np.ndarray) -> np.ndarray:
    """Of each image [N] what it costs of the mAP, in points, from its costs [N, C]."""
    counted = ~np.isnan(costs).any(axis=0)
    return costs[:, counted].sum(axis=1) / max(np.count_nonzero(counted), 1)

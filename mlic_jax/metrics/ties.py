"""Images of equal scores: in which order they count, and what that order decides.

A model that says the same of many images ranks them by chance. Average precision in the order of
the images, as published figures have it, then tells of the order of the files: where these are
sorted by class, constant scores are better than chance.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

# In the order of the images; the expectation over all orders; the best and the worst order.
Ties = Literal["stable", "average", "optimistic", "pessimistic"]
TIES: tuple[Ties, ...] = get_args(Ties)
LEAST_SAID = 1.0  # point of AP that the order of equal scores decides


def blocks_of(scores: np.ndarray) -> np.ndarray:
    """int [M], the same for equal scores, of scores [M] in descending order."""
    return np.cumsum(np.concatenate([[0], scores[1:] != scores[:-1]]))


def are_mixed(scores: np.ndarray, positive: np.ndarray) -> bool:
    """Whether a positive and another image (bool [M]) have equal scores [M], which are ranked."""
    return bool(((scores[1:] == scores[:-1]) & (positive[1:] != positive[:-1])).any())


def sorted_in_blocks(blocks: np.ndarray, positive: np.ndarray, ties: Ties) -> np.ndarray:
    """`positive` [M] with the positives of each block first (`optimistic`) or last."""
    return positive[np.lexsort((positive != (ties == "optimistic"), blocks))]


def expected_precision(blocks: np.ndarray, positive: np.ndarray) -> float:
    """The mean precision at the positives, its expectation over all orders within the blocks.

    In a block of n images with p positives, behind N images with P, each place k = 1..n holds a
    positive with probability p / n, and each of the k - 1 before it then one of the others with
    (p - 1) / (n - 1): the precision there is (P + 1 + (k - 1) (p - 1) / (n - 1)) / (N + k).

    Args:
        blocks: [M], of `blocks_of`.
        positive: bool [M], of which at least one is.
    """
    images = np.bincount(blocks)
    positives = np.bincount(blocks, weights=positive)
    images_before = (np.cumsum(images) - images)[blocks]
    positives_before = (np.cumsum(positives) - positives)[blocks]
    n, p = images[blocks], positives[blocks]
    ranks = np.arange(1, len(blocks) + 1)
    others = (ranks - images_before - 1) * (p - 1) / np.maximum(n - 1, 1)
    precision = (positives_before + 1 + others) / ranks
    return float((p / n * precision).sum() / positives.sum())


def said_of_ties(values: Mapping[str, Any]) -> str:
    """In words, where equal scores decide more than a point of a class's AP; "" where they do not.

    Args:
        values: of `metrics.evaluate_scores`.
    """
    rows = zip(values["class_names"], values["tied"]["AP"], strict=True)
    spans = {name: pair for name, pair in rows if pair and pair[1] - pair[0] > LEAST_SAID}
    if not spans:
        return ""
    name, (low, high) = max(spans.items(), key=lambda item: item[1][1] - item[1][0])
    worst, best = values["tied"]["mAP"]
    classes = f"{len(spans)} classes" if len(spans) > 1 else "1 class"
    return (
        f"equal scores: by the order of such images mAP is {worst:.1f} to {best:.1f}; it decides "
        f"the AP of {classes}, most of all of {name}, {low:.1f} to {high:.1f}"
    )

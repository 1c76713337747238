"""Which photos to label next: those that a probe is least sure of, and among these no two alike.

Uncertainty alone asks for many photos of one kind, at the same boundary. So of a few times as many
as are wanted, the least certain, those are taken that lie farthest from all that are labelled or
taken already: greedy k-center (Sener and Savarese, "Active Learning for Convolutional Neural
Networks: A Core-Set Approach", ICLR 2018).
"""

import numpy as np

SHORTLIST = 5  # times as many as are wanted


def most_informative(
    features: np.ndarray, probabilities: np.ndarray, is_labelled: np.ndarray, count: int
) -> np.ndarray:
    """The positions of `count` photos that are not labelled, fewer where there are not so many.

    Args:
        features: float `[N, D]`.
        probabilities: `[N, C]` that each class is present; NaN where nothing is known of a class.
            Where nothing is of any, the photos differ from each other and that is all.
        is_labelled: bool `[N]`.
        count: how many are wanted.

    Returns:
        int `[K]`, in the order in which they are to be labelled.
    """
    pool = np.flatnonzero(~is_labelled)
    doubt = uncertainty(probabilities[pool])
    if doubt.any():
        pool = pool[np.argsort(-doubt, kind="stable")[: SHORTLIST * count]]
    centres = unit_rows(features)
    return pool[k_center(centres[pool], centres[is_labelled], count)]


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """The mean entropy of the labels of each photo, in bits, float64 `[N]`; 0 where none is known.

    Args:
        probabilities: `[N, C]` in [0, 1], or NaN.
    """
    present = np.clip(probabilities, 1e-12, 1 - 1e-12)
    entropy = -present * np.log2(present) - (1 - present) * np.log2(1 - present)
    is_known = ~np.isnan(entropy)
    return np.where(is_known, entropy, 0).sum(axis=1) / np.maximum(is_known.sum(axis=1), 1)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Float64 `[N, D]` of length 1, so that distances are those of directions."""
    rows = np.asarray(features, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def k_center(candidates: np.ndarray, centres: np.ndarray, count: int) -> np.ndarray:
    """Positions, int `[K]`, each the candidate farthest from the centres and those before it.

    Args:
        candidates: `[M, D]`.
        centres: `[L, D]`; without any the first candidate comes first.
        count: K, or M where that is less.
    """
    nearest = np.full(len(candidates), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, np.square(candidates - centre).sum(axis=1))
    taken = []
    for _ in range(min(count, len(candidates))):
        taken.append(int(nearest.argmax()))
        distance = np.square(candidates - candidates[taken[-1]]).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        nearest[taken] = -1  # also where others are the same
    return np.array(taken, int)

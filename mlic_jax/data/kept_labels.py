"""Fewer labels to train on, drawn from all: how partial and missing labels are studied.

Of the labels of the split to train on some are kept. What is not kept is unknown (partial labels,
Durand et al. 2019, arXiv 1902.09720), or it is given as absent (missing labels; hardest is one
positive a photo, Cole et al. 2021, arXiv 2106.09708). What is drawn follows from `data.labels_seed`
and the order of the photos alone, and not from the seed of a run: all runs that are compared learn
from the same labels.
"""

import logging

import numpy as np

from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split

logger = logging.getLogger(__name__)

# First word of the random stream: another than that of a set which is drawn from the same seed.
_KEPT = 3


def keeps_all(data: DataOptions) -> bool:
    """Whether no label is dropped."""
    return data.keep_labels == 1 and not data.one_positive


def keep_labels(split: Split, data: DataOptions) -> Split:
    """The split with the labels that the options keep of it; a line says how many they are."""
    if keeps_all(data):
        return split
    kept = split.with_labels(kept_of(split.labels(), data))
    logger.info("%s", said_of(split.labels(), kept.labels(), data))
    return kept


def kept_of(labels: np.ndarray, data: DataOptions) -> np.ndarray:
    """The labels that are left to train on, int8 `[N, C]`, of all of them.

    Every label has a number of its own between 0 and 1, drawn from `labels_seed`. It is kept where
    that is below `keep_labels`; or with `one_positive` where it is the least of those that are
    present in its photo. What is not kept is dropped: to `unknown`, 0, whatever it was; or to
    `absent`, -1, where it was present, while what was absent or unknown stays so.
    """
    draws = np.random.default_rng((_KEPT, data.labels_seed)).random(labels.shape)
    if data.one_positive:
        first = np.where(labels > 0, draws, np.inf).argmin(axis=1)
        is_kept = (np.arange(labels.shape[1]) == first[:, None]) & (labels > 0)
    else:
        is_kept = draws < data.keep_labels
    if data.dropped_labels == "unknown":
        return np.where(is_kept, labels, np.int8(0))
    return np.where(is_kept | (labels <= 0), labels, np.int8(-1))


def said_of(labels: np.ndarray, kept: np.ndarray, data: DataOptions) -> str:
    """A sentence on what is kept of labels int8 `[N, C]`."""
    counts = [
        f"{np.count_nonzero(kept == value):,} of {np.count_nonzero(labels == value):,} {name}"
        for value, name in ((1, "present"), (-1, "absent"))
    ]
    if data.dropped_labels == "absent":
        del counts[1]  # none is dropped
    rule = "data.one_positive" if data.one_positive else f"data.keep_labels={data.keep_labels:g}"
    return (
        f"{rule} keeps {' and '.join(counts)} labels to train on; the others are given as "
        f"{data.dropped_labels}"
    )

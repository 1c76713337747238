"""Errors by likely cause: traits of labels, and how much more often a label with one is wrong.

A trait is no proof of a cause. So beside the errors of labels that have it stand the errors of the
labels that do not: a cause is likely where the first is the higher rate by more than chance makes
it (see `is_likely`).

Of labels that are present, and may be missed:

- `small`: the largest box of the class is, as COCO has it, small (see `localisation`);
- `cut_off`: every box of the class reaches an edge of what the model sees;
- `overlapped`: of every box of the class at least half lies in boxes of other objects;
- `alone`: the class usually has companions, and none of them is there;
- `rare`: few photos of the training split show the class.

Of labels that are absent, and may be predicted:

- `companion`: what the class usually occurs with is there;
- `rare`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.data.co_occurrence import EDGE_PROBABILITY
from mlic_jax.data.objects import Objects
from mlic_jax.metrics.localisation import MEDIUM

OF_BOXES = ("small", "cut_off", "overlapped")
MISSED, WRONG = (*OF_BOXES, "alone", "rare"), ("companion", "rare")

# Photos of the training split that show a class which is rare, at most, as in LVIS (Gupta et al.,
# CVPR 2019, arXiv 1908.03195).
RARE = 10
# A companion is in so large a share of the photos with a class, MSRN's for an edge, that is also so
# many times its share of all photos; of a class in fewer photos none is known.
COMPANION, LIFT, LEAST_PHOTOS = EDGE_PROBABILITY, 2.0, 5
# How near to an edge a box reaches it, as a share of the side, and the share that is overlapped.
EDGE, OVERLAPPED = 0.005, 0.5
# A cause is likely by intervals of so many standard errors, and of at least so many labels.
SURE, LEAST_LABELS = 2.0, 5


class Trait(NamedTuple):
    """Which labels have a trait, bool [N, C], of those of which it is known, bool [N, C]."""

    has: np.ndarray
    known: np.ndarray


def find_companions(labels: np.ndarray) -> np.ndarray:
    """Bool [C, C]: [c, d] whether d usually is where c is, by training labels [N, C]."""
    present = (labels > 0).astype(np.float64)
    together, positives = present.T @ present, present.sum(axis=0)
    given = together / np.maximum(positives, 1)[:, None]
    share = positives / max(len(labels), 1)
    usual = (given >= COMPANION) & (given >= LIFT * share[None])
    np.fill_diagonal(usual, False)
    return usual & (positives >= LEAST_PHOTOS)[:, None]


def find_traits(
    labels: np.ndarray,
    train_labels: np.ndarray,
    objects: Sequence[Objects] | None,
    image_size: int,
) -> dict[str, Trait]:
    """All traits of the labels [N, C] of a split; without `objects` those of boxes are not there.

    Args:
        train_labels: [M, C], of the split that was trained on.
        objects: of each of the N images its true boxes in the square, and their classes.
        image_size: S, of a side of the square.
    """
    present = labels > 0
    everywhere = np.ones(labels.shape, bool)
    usual = find_companions(train_labels)
    accompanied = (present.astype(np.int64) @ usual.T.astype(np.int64)) > 0
    rare = np.broadcast_to(np.sum(train_labels > 0, axis=0) <= RARE, labels.shape)
    has_companions = np.broadcast_to(usual.any(axis=1), labels.shape)
    traits = {
        "alone": Trait(~accompanied & has_companions, has_companions),
        "companion": Trait(accompanied, has_companions),
        "rare": Trait(rare, everywhere),
    }
    if objects is not None:
        traits |= _traits_of_boxes(labels.shape, objects, image_size)
    return traits


def _traits_of_boxes(
    shape: tuple[int, ...], objects: Sequence[Objects], image_size: int
) -> dict[str, Trait]:
    known = np.zeros(shape, bool)
    has = {name: np.zeros(shape, bool) for name in OF_BOXES}
    margin = EDGE * image_size
    for i, (boxes, classes) in enumerate(objects):
        if not len(boxes):
            continue
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        reaches = (boxes[:, :2] <= margin) | (boxes[:, 2:] >= image_size - margin)
        cut = np.any(reaches, axis=1)
        overlapped = _overlapped(boxes, image_size)
        for c in np.unique(classes):
            own = classes == c
            known[i, c] = True
            has["small"][i, c] = areas[own].max() < MEDIUM * image_size**2
            has["cut_off"][i, c] = cut[own].all()
            has["overlapped"][i, c] = overlapped[own].all()
    return {name: Trait(of, known) for name, of in has.items()}


def _overlapped(boxes: np.ndarray, image_size: int) -> np.ndarray:
    """Bool [K]: of which boxes [K, 4] the larger part lies in others."""
    layers = np.zeros((image_size, image_size), np.int32)
    for y1, x1, y2, x2 in boxes:
        layers[y1:y2, x1:x2] += 1
    parts = [layers[y1:y2, x1:x2] > 1 for y1, x1, y2, x2 in boxes]
    return np.array([part.size > 0 and part.mean() >= OVERLAPPED for part in parts])


def count_errors(
    errors: np.ndarray, among: np.ndarray, traits: Mapping[str, Trait], causes: Sequence[str]
) -> dict[str, Any]:
    """How many labels are wrong, and how many of them with each trait.

    Args:
        errors: bool, the labels that are wrong, of any shape.
        among: bool, those that could be, `errors` included.
        traits: of the same shape.
        causes: those that are counted, as far as `traits` has them.

    Returns:
        `errors` and `labels`, their numbers; `unexplained`, the errors without any trait; and of
        each of the `causes` such numbers with the trait, and without it `other_errors` and
        `other_labels`, and whether it is `likely`.
    """
    there = [cause for cause in causes if cause in traits]
    explained = np.zeros(errors.shape, bool)
    found = {}
    for cause in there:
        has, known = traits[cause]
        explained |= has
        with_it, without = among & has & known, among & known & ~has
        counts = {
            "errors": int((errors & with_it).sum()),
            "labels": int(with_it.sum()),
            "other_errors": int((errors & without).sum()),
            "other_labels": int(without.sum()),
        }
        found[cause] = counts | {"likely": is_likely(*counts.values())}
    return {
        "errors": int(errors.sum()),
        "labels": int(among.sum()),
        "unexplained": int((errors & ~explained).sum()),
        "causes": found,
    }


def is_likely(errors: int, labels: int, other_errors: int, other_labels: int) -> bool:
    """Whether labels with a trait are more often wrong than others, by more than chance makes them.

    That is where the interval of the difference of the two shares is above 0: Newcombe's hybrid
    score interval (Statistics in Medicine 17, 1998, method 10), made of Wilson's of each share,
    whose width is not 0 where all labels are wrong, or none. Of few labels nothing is likely.
    """
    if min(labels, other_labels) < LEAST_LABELS:
        return False
    share, other_share = errors / labels, other_errors / other_labels
    below = share - wilson_interval(errors, labels)[0]
    above = wilson_interval(other_errors, other_labels)[1] - other_share
    return share - other_share > math.hypot(below, above)


def wilson_interval(errors: int, labels: int) -> tuple[float, float]:
    """The interval (low, high) of the share of errors among labels, of `SURE` standard errors."""
    square = SURE**2
    middle = (errors + square / 2) / (labels + square)
    variance = errors * (labels - errors) / labels + square / 4
    half = SURE * math.sqrt(variance) / (labels + square)
    return middle - half, middle + half


def errors_by_cause(
    predicted: np.ndarray, labels: np.ndarray, traits: Mapping[str, Trait], names: Sequence[str]
) -> dict[str, Any]:
    """The errors of all classes and of each, missed and wrongly predicted; see `count_errors`.

    Args:
        predicted: bool [N, C].
        labels: [N, C] in {+1, 0, -1}; entries that are 0 do not count.
        traits: of `find_traits`.
        names: of the C classes.
    """
    kinds = (
        ("missed", ~predicted & (labels > 0), labels > 0, MISSED),
        ("wrong", predicted & (labels < 0), labels < 0, WRONG),
    )
    by_class = []
    for c, name in enumerate(names):
        column = {key: Trait(of.has[:, c], of.known[:, c]) for key, of in traits.items()}
        counts = {
            kind: count_errors(errors[:, c], among[:, c], column, causes)
            for kind, errors, among, causes in kinds
        }
        by_class.append({"name": name, "rare": bool(column["rare"].has.all()), **counts})
    overall = {
        kind: count_errors(errors, among, traits, causes) for kind, errors, among, causes in kinds
    }
    return {**overall, "by_class": by_class}

"""Training steps of both sides, compared."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlic_jax.errors import Failure
from weight_conversion.sides import (
    TRUNK_PREFIXES,
    Checkpoint,
    JaxSide,
    TorchSide,
    torch_state,
    training_options,
)
from weight_conversion.verify.differences import box_distances, compare_boxes, ratio
from weight_conversion.verify.photos import Photos

# Of training: the difference of two losses relative to the loss, and that of two trained states
# relative to how far they moved, after one step and at most. Rounding grows with every step, up to
# tenfold where batches and maps are small, for their statistics normalise and are a part of the
# gradient. Measured on a MobileNetV2 with batches of 4 after three steps: losses 1e-6, head and
# statistics 5e-6, trunk 3e-3; on a random ResNet-18 with maps of 2 x 2, which is hard: 8e-5, 1e-4,
# 2e-2, and after eight steps 2e-2, 8e-3, 1e-1. A wrong rate or momentum is of the order of 1.
TRAINING_BOUNDS = {
    "losses": (1e-4, 0.05),
    "head": (1e-4, 0.05),
    "statistics": (1e-4, 0.05),
    "trunk": (1e-2, 0.2),
}


GROWTH_OF_A_STEP = 10


def compare_training(
    checkpoint: Checkpoint, photos: Photos, labels: np.ndarray, steps: int, batch_size: int
) -> dict[str, Any]:
    """Takes `steps` optimiser steps in both, from the same weights on the same batches.

    Returns the losses of every step, and for each group of tensors how far the two ended apart: the
    norm of the difference over the norm of what the steps changed.
    """
    size = min(batch_size, len(photos))
    positions = [np.arange(k * size, (k + 1) * size) % len(photos) for k in range(steps)]
    batches = [
        (photos.pixels(rows, checkpoint.image_size, checkpoint.fit), labels[rows])
        for rows in positions
    ]
    options = training_options(checkpoint)
    ours = JaxSide(checkpoint).train(batches, options)
    theirs = TorchSide(checkpoint).train(batches, options, ours.regions)
    if not np.isfinite([*ours.losses, *theirs.losses]).all():
        raise Failure("the loss is not finite: the checkpoint cannot be trained on these images")
    before = torch_state(checkpoint.variables, checkpoint.model)
    errors = {
        name: _squares(ours.state[name], theirs.state[name], before[name])
        for name in before
        if not name.endswith("num_batches_tracked")  # we do not count
    }
    prefix = TRUNK_PREFIXES[checkpoint.model.name]
    pairs = zip(ours.regions, theirs.regions, strict=True)
    distances = [box_distances(a, b) for a, b in pairs]
    return {
        "steps": [
            {"jax": a, "torch": b, "relative": ratio(abs(a - b), abs(b))}
            for a, b in zip(ours.losses, theirs.losses, strict=True)
        ],
        "boxes": compare_boxes(np.concatenate(distances)) if distances else None,
        "groups": {
            group: _moved_apart(
                [e for name, e in errors.items() if group_of(name, prefix) == group]
            )
            for group in TRAINING_BOUNDS
            if group != "losses"
        },
        "worst": sorted(
            ({"name": name, "relative": _moved_apart([pair])} for name, pair in errors.items()),
            key=lambda row: -row["relative"],
        )[:5],
    }


def training_bound(what: str, steps: int) -> float:
    """The largest error of a key of `TRAINING_BOUNDS` that rounding explains after `steps`."""
    first, last = TRAINING_BOUNDS[what]
    growth = GROWTH_OF_A_STEP ** min(steps - 1, 9)  # which is beyond every `last`, and finite
    return min(first * growth, last)


def group_of(name: str, trunk_prefix: str) -> str:
    """The group of a tensor of the reference by its name: trunk, head or statistics."""
    if name.endswith(("running_mean", "running_var")):
        return "statistics"
    return "trunk" if name.startswith(trunk_prefix) else "head"


def _squares(ours: np.ndarray, theirs: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Squared norms of the difference and of the movement."""
    ours, theirs, before = (array.astype(np.float64) for array in (ours, theirs, before))
    return float(np.sum((ours - theirs) ** 2)), float(np.sum((theirs - before) ** 2))


def _moved_apart(squares: Sequence[tuple[float, float]]) -> float:
    apart, moved = np.sum(squares, axis=0)
    return ratio(math.sqrt(apart), math.sqrt(moved))

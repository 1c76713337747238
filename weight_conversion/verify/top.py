"""What the ImageNet classifier of a trunk says of the photos: its likeliest classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.errors import UsageError
from weight_conversion.layouts.rules import IMAGENET_CLASSES
from weight_conversion.sides import Checkpoint, JaxSide
from weight_conversion.verify.differences import batches_of
from weight_conversion.verify.photos import Photos


def read_names(path: Path) -> list[str]:
    """The names of ImageNet's classes, a line each in the usual order (that of the WordNet ids).

    Raises:
        UsageError: there is no such file, or it has another number of lines.
    """
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--names {path}: cannot be read as text ({error})") from error
    if len(names) != IMAGENET_CLASSES:
        raise UsageError(
            f"--names {path}: it has {len(names)} lines; it must have {IMAGENET_CLASSES}, the name "
            "of a class each"
        )
    return names


def top_classes(
    checkpoint: Checkpoint,
    photos: Photos,
    batch_size: int,
    count: int,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Of every photo its `count` likeliest classes, as our side has them, ready for JSON.

    Returns:
        `id`, and `classes`: `index`, `probability` and, if there are `names`, `name`.

    Raises:
        UsageError: the checkpoint is no trunk with a classifier of the mean of its last map.
    """
    classifier = _classifier_of(checkpoint)
    side, found = JaxSide(checkpoint), []
    for rows in batches_of(len(photos), batch_size):
        images = checkpoint.normalise(photos.pixels(rows, checkpoint.image_size, checkpoint.fit))
        stages = side.run(images)
        means = stages[f"stage{len(stages)}"].mean(axis=(1, 2))
        scores = jax.nn.softmax(means @ classifier["kernel"] + classifier["bias"])
        found += [_likeliest(of_photo, count, names) for of_photo in np.asarray(scores)]
    return [
        {"id": name, "classes": classes} for name, classes in zip(photos.ids, found, strict=False)
    ]


def _classifier_of(checkpoint: Checkpoint) -> Mapping[str, np.ndarray]:
    params = checkpoint.variables["params"]
    if checkpoint.model.name != "trunk" or "classifier" not in params:
        raise UsageError("--top is for a trunk with its ImageNet classifier, and this has none")
    if not checkpoint.variables["batch_stats"]:
        raise UsageError(
            f"--top is for networks whose classifier takes the mean of the last map; that of "
            f"{checkpoint.model.backbone} takes something else"
        )
    return params["classifier"]


def _likeliest(scores: np.ndarray, count: int, names: Sequence[str] | None) -> list[dict[str, Any]]:
    found = []
    for index in np.argsort(-scores, kind="stable")[:count].tolist():
        name = {} if names is None else {"name": names[index]}
        found.append({"index": index, "probability": float(scores[index]), **name})
    return found

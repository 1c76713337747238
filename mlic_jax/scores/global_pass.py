"""MCAR's first look at a split, read from the score file of an earlier evaluation.

What the global stream says of an image depends on the weights and on a few options, and on none of
the local stream's: with `config.eval.global_scores` only the second look is computed again. A score
file says what it was made with, and one that was made with anything else is refused.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.runtime.checkpoint import digest_of_arrays
from mlic_jax.scores.files import GLOBAL_OUTPUTS, Scores
from mlic_jax.scores.options import ScoreOptions

# The options that decide the global outputs, beside the weights and the images.
OPTIONS = (
    "model.pooling",
    "model.threshold",
    "model.localizer",
    "model.region_grid",
    "model.dtype",
    "model.precision",
    "data.image_size",
    "data.interpolation",
    "data.center_crop",
    "augment.mean",
    "augment.std",
    "eval.flip",
    "eval.scales",
)

# What an option was before there was a choice, in files that do not say.
_UNSAID = {"model.region_grid": 1, "data.interpolation": "bilinear", "data.center_crop": 0.0}


def origin_of(variables: Mapping[str, Any], options: ScoreOptions) -> dict[str, Any]:
    """What decides the global outputs of an image: a digest of the weights, and the `OPTIONS`.

    Args:
        variables: of the model, of which `params` and `batch_stats` count.
        options: of the evaluation.

    Returns:
        What JSON can hold, and gives back the same.
    """
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    origin = {option: operator.attrgetter(option)(options) for option in OPTIONS}
    origin["weights"] = digest_of_arrays(weights)
    return json.loads(json.dumps(origin))


def read(
    options: ScoreOptions, split: Split, origin: Mapping[str, Any], top_n: int
) -> dict[str, Shaped[np.ndarray, "N ..."]]:
    """The global outputs of every image of a split, from the file `config.eval.global_scores`.

    Args:
        options: of the evaluation.
        split: of N images.
        origin: what `origin_of` says now.
        top_n: the regions wanted of an image, T.

    Returns:
        `global_logits` float32 `[N, C]`, `boxes` int32 `[N, T, 4]`, `box_classes` int32 `[N, T]`.

    Raises:
        UsageError: there is no such file, or it is of something else, which is named.
        Failure: it is not a score file.
    """
    path = options.eval.global_scores
    if options.model.name != "mcar":
        raise UsageError(
            f"eval.global_scores is {path}, but a {options.model.name} model looks only once: "
            "leave it empty"
        )
    if options.eval.flip or options.eval.scales:
        raise UsageError(
            f"eval.global_scores is {path}, but with eval.flip or eval.scales an image has several "
            "views, and a score file has only their mean: leave it empty"
        )
    scores = Scores.load(Path(path))
    if scores.origin is None:
        raise UsageError(
            f"{path} does not say what weights made it (it is of an earlier version, or not of "
            "MCAR): evaluate again with eval.global_scores empty"
        )
    seen = {name: getattr(scores, name) for name in GLOBAL_OUTPUTS}
    if any(value is None for value in seen.values()):
        raise UsageError(
            f"{path} lacks the regions of a global pass: leave eval.global_scores empty"
        )
    there = {"set": scores.set_name, "split": scores.split} | _UNSAID | scores.origin
    wanted = {"set": split.name, "split": split.split, **origin}
    wrong = [
        f"other {name}"
        if name == "weights"
        else f"{name} {there.get(name)!r}, not {wanted.get(name)!r}"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if list(scores.class_names) != list(split.class_names):
        wrong.append("other classes")
    if list(scores.image_ids) != [split.image_id(i) for i in range(len(split))]:
        wrong.append("other images")
    if seen["boxes"].shape[1] < top_n:
        wrong.append(f"{seen['boxes'].shape[1]} regions of an image, not {top_n}")
    if wrong:
        raise UsageError(
            f"the global pass in {path} does not fit, it has {'; '.join(wrong)}: evaluate again "
            "with eval.global_scores empty"
        )
    return seen | {name: seen[name][:, :top_n] for name in ("boxes", "box_classes")}

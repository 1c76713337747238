"""Going on with a run: what its checkpoint says of itself, and what may differ now."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mlic_jax import config_paths
from mlic_jax.checkpoint_config import HOW, changed_options, describe, is_among, own_config
from mlic_jax.command_line import mode_command
from mlic_jax.data import label_tree
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.runtime.checkpoint_paths import run_of
from mlic_jax.scores import scoring
from mlic_jax.train.losses import LossOptions

# Options, or groups of them, that change nothing of what has been. (Another set of the same name is
# told by the stream.)
FREE = (*HOW, "recipe", "early_stopping", "eval.min_positives", "calibration")


def run_metadata(config: ConfigDict, split: Split, workdir: Path) -> dict[str, Any]:
    """What a checkpoint of the run in `workdir` says of itself beside its arrays."""
    tree = label_tree.of_options(DataOptions.of(config.data), split.class_names)
    return {
        "config": config_paths.absolute(json.loads(config.to_json())),
        "folder": os.path.abspath(workdir),  # from which those paths are seen, should all move
        "class_names": list(split.class_names),
        **({} if tree is None else {"label_tree": tree.named()}),
        "preprocessing": {
            "image_size": config.data.image_size,
            "interpolation": config.data.interpolation,
            "center_crop": config.data.center_crop,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "range": split.value_range,  # of images of more than 8 bits; None: there were none
        },
        # Of the stream of batches, whose position is the step.
        "stream": {
            "set": split.name,
            "split": split.split,
            "examples": len(split),
            "digest of the images' names": _digest_of_names(split),
            "batch_size": config.batch_size,
            "seed": config.seed,
        },
        "changes": [],  # of options, made in resuming: {"step": ..., "options": {name: [old, new]}}
    }


def _digest_of_names(split: Split) -> str:
    """By which a set of the same name and size is known for another, as one divided anew is."""
    digest = hashlib.blake2b(digest_size=8)
    for i in range(len(split)):
        digest.update(split.image_id(i).encode() + b"\0")
    return digest.hexdigest()


def check_resumable(
    saved: dict[str, Any],
    current: dict[str, Any],
    path: Path,
    last_step: int,
    allow_changes: bool = False,
) -> dict[str, Any]:
    """Compares the metadata of a run's checkpoint in `path` with those of the run now wanted.

    Args:
        last_step: of the run now wanted.
        allow_changes: take options too that change what has been.

    Returns:
        The options that differ: {name: (old, new)}.

    Raises:
        UsageError: the arrays (of the model, of the optimiser), the classes or the stream of
            batches differ, or such options do; or the run is further than it is now to go.
    """
    scoring.check_same_model(saved, current, path)
    for name, value in current["stream"].items():
        before = saved["stream"].get(name, value)  # an earlier version noted less
        if before != value:
            raise UsageError(
                f"the run in {path} read batches with {name} {before!r}, now it is "
                f"{value!r}: resuming would not be exact; use the same or another --workdir"
            )
    changes = changed_options(config_paths.located(saved, run_of(path)), current["config"])
    grave = {name: values for name, values in changes.items() if not _is_free(name, current)}
    if grave and not allow_changes:
        raise UsageError(
            f"the run in {path} had {describe(grave)}: what is trained so far would not be of this "
            "configuration; use the same, another --workdir, or --allow_changes"
        )
    other = {name: values for name, values in changes.items() if _is_of_state(name, *values)}
    losses = [LossOptions.of(own_config(of, path).loss) for of in (saved, current)]
    if len({loss.corrects_permanently for loss in losses}) > 1:
        other |= {name: changes[name] for name in ("loss.name", "loss.large") if name in changes}
    if other:
        raise UsageError(
            f"the run in {path} had {describe(other)}: what it keeps beside its weights is of no "
            "use to that; use the same or another --workdir"
        )
    if saved.get("step", 0) > last_step:
        raise UsageError(
            f"the run in {path} is at step {saved['step']}, and with epochs "
            f"{current['config']['epochs']} it ends at {last_step}: give it more, or another "
            "--workdir"
        )
    if grave and saved.get("step") == last_step:
        raise UsageError(
            f"the run in {path} is complete: nothing is left to be trained with {describe(grave)}; "
            f"{mode_command('evaluate')} takes options of evaluation"
        )
    return changes


def _is_of_state(name: str, old: Any, new: Any) -> bool:
    """Whether with this change an optimiser has other arrays, or an average is there or not."""
    if name == "optim.layer_decay":
        return (old == 1) != (new == 1)
    if is_among(name, ("optim.ema", "optim.clip_norm", "optim.multipliers")):
        return None not in (old, new) and (old == 0) != (new == 0)
    return name in ("optim.name", "optim.decay_biases_and_norms")


def _is_free(name: str, current: dict[str, Any]) -> bool:
    if name == "epochs":  # the rates of steps already done do not depend on how many will follow
        return current["config"]["optim"]["schedule"] == "step"
    return is_among(name, FREE)

"""Going on with a run: what its checkpoint says of itself, and what may differ now."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mlic_jax.config import default_config
from mlic_jax.data.records import Split
from mlic_jax.errors import UsageError
from mlic_jax.evaluate import run

# Options that change no result: how something is done and where its files lie.
HOW = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "shard_fc1", "model.remat"),
    *("data.workers", "data.threads", "data.prepared_dir", "data.root", "data.image_dir"),
    *("data.annotations", "eval.every", "eval.batch_size"),
)
# Options, or groups of them, that change nothing of what has been. (Another set of the same name is
# told by the stream.)
FREE = (*HOW, "eval.min_positives", "calibration")

# Groups of options that hold whatever a recipe names.
FREELY_NAMED = ("optim.multipliers", "data.splits")

Changes = dict[str, tuple[Any, Any]]  # of options: {name: (old, new)}


def run_metadata(config: ConfigDict, split: Split) -> dict[str, Any]:
    """What a checkpoint says of itself beside its arrays."""
    return {
        "config": json.loads(config.to_json()),
        "class_names": list(split.class_names),
        "preprocessing": {
            "image_size": config.data.image_size,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "range": split.value_range,  # of images of more than 8 bits; None: there were none
        },
        # Of the stream of batches, whose position is the step.
        "stream": {
            "set": split.name,
            "split": split.split,
            "examples": len(split),
            "batch_size": config.batch_size,
            "seed": config.seed,
        },
        "changes": [],  # of options, made in resuming: {"step": ..., "options": {name: [old, new]}}
    }


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
        UsageError: the arrays, the classes or the stream of batches differ, or such options do; or
            the run is further than it is now to go.
    """
    run.check_same_model(saved, current, path)
    for name, value in current["stream"].items():
        if saved["stream"][name] != value:
            raise UsageError(
                f"the run in {path} read batches with {name} {saved['stream'][name]!r}, now it is "
                f"{value!r}: resuming would not be exact; use the same or another --workdir"
            )
    changes = changed_options(saved["config"], current["config"])
    grave = {name: values for name, values in changes.items() if not _is_free(name, current)}
    if grave and not allow_changes:
        raise UsageError(
            f"the run in {path} had {describe(grave)}: what is trained so far would not be of this "
            "configuration; use the same, another --workdir, or --allow_changes"
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
            "--mode=evaluate takes options of evaluation"
        )
    return changes


def changed_options(saved: dict[str, Any], current: dict[str, Any]) -> Changes:
    """The options that differ between two configurations as JSON: {name: (old, new)}.

    What was no option when the first was saved had its default; of groups whose names are free
    what is no longer there differs too.
    """
    defaults, new = _flat(json.loads(default_config().to_json())), dict(_flat(current))
    old = {name: value for name, value in defaults if not is_among(name, FREELY_NAMED)}
    old |= dict(_flat(saved))
    gone = [name for name in old if is_among(name, FREELY_NAMED) and name not in new]
    return {
        name: (old.get(name), new.get(name))
        for name in (*new, *gone)
        if old.get(name) != new.get(name)
    }


def describe(changes: Changes) -> str:
    """Changed options in words."""
    return ", ".join(f"{name} {old!r} (now {new!r})" for name, (old, new) in changes.items())


def _is_free(name: str, current: dict[str, Any]) -> bool:
    if name == "epochs":  # the rates of steps already done do not depend on how many will follow
        return current["config"]["optim"]["schedule"] == "step"
    return is_among(name, FREE)


def is_among(name: str, options: Collection[str]) -> bool:
    """Whether an option is one of these, or of a group that is."""
    return any(name == option or name.startswith(f"{option}.") for option in options)


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

"""What a checkpoint is used with: its own configuration, and what is asked to differ.

A checkpoint needs no recipe. Where one is given it says only which data to take, and that only if
the checkpoint names none (a converted model) or another set.
"""

import dataclasses
import hashlib
import json
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mlic_jax import config_paths
from mlic_jax.config import default_config
from mlic_jax.errors import Failure, UsageError
from mlic_jax.names import MODELS
from mlic_jax.runtime.checkpoint import find_checkpoint, latest_checkpoint, read_metadata
from mlic_jax.runtime.checkpoint_paths import run_checkpoints, run_of
from mlic_jax.scores.scoring import ARRAY_OPTIONS

# Options that change no result: how something is done and where its files lie.
HOW = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "shard_fc1", "model.remat"),
    *("data.workers", "data.threads", "data.prepared_dir", "data.root", "data.image_dir"),
    *(
        "data.annotations",
        "data.cache",
        "data.cache_gib",
        "eval.every",
        "eval.batch_size",
    ),
)

# Groups of options that hold whatever a recipe names.
FREELY_NAMED = ("optim.multipliers", "data.splits")

Changes = dict[str, tuple[Any, Any]]  # of options: {name: (old, new)}

# Options, or groups of them, that decide what is written of a split...
DECIDING = ("model", "data", "augment.mean", "augment.std", "eval")
# ...and those of them that decide what the model says of an image, in prediction too.
SAYING = (
    *("model", "data.image_size", "data.interpolation", "data.center_crop", "augment.mean"),
    *("augment.std", "eval.top_n", "eval.local_size"),
    *("eval.local_bound", "eval.flip", "eval.scales", "eval.weights"),
    "eval.consistent",
)
# What of the model and the data training alone knows.
_OF_TRAINING = (
    *("model.bn_groups", "data.keep_labels", "data.one_positive", "data.dropped_labels"),
    "data.labels_seed",
)
# Options of `data` that are the model's, whatever the set.
_OF_MODEL = (
    *("image_size", "interpolation", "center_crop", "train_crop", "crop_scale", "views"),
    *("views_seed", "word_vectors", "label_graph"),
)

# What a checkpoint notes of how photos were prepared, and which options say it.
_PREPARED_BY = {
    "mean": "augment.mean",
    "std": "augment.std",
    "interpolation": "data.interpolation",
    "center_crop": "data.center_crop",
}

ASIDE = "evaluations"  # the folder of a run for evaluations that are not its own
LONGEST_NAME = 100  # characters of a folder there
_MOST_TOLD = 3  # options of a recipe that do not count


@dataclasses.dataclass(frozen=True)
class Setup:
    """A checkpoint and what it is used with.

    Attributes:
        path: the checkpoint's folder.
        config: its own configuration, with what differs.
        workdir: the folder for what is written: the run's, or one in `evaluations/` where the
            result is not that of the run.
        overrides: the options that differ from the checkpoint's and decide the result.
        said: what is used with what, in a line or two.
    """

    path: Path
    config: ConfigDict
    workdir: Path
    overrides: Changes
    said: str


def set_up(
    checkpoint: str | Path | None,
    workdir: str | Path | None,
    recipe: ConfigDict | None = None,
    options: Mapping[str, Any] | None = None,
) -> Setup:
    """Finds a checkpoint, and says what it is used with and where that is written.

    Args:
        checkpoint: a run (its best), one of its checkpoints or a converted model; by default the
            run in `workdir`.
        workdir: where to write; by default the run that the checkpoint is of. Not both are None.
        recipe: which data to take, if the checkpoint names none or another set.
        options: that are to differ from the checkpoint's, by dotted name.

    Raises:
        UsageError: there is no checkpoint, it is a backbone alone, no data or no place to write are
            named, or an option is unknown or one that the arrays depend on.
        Failure: its metadata are damaged.
    """
    if not (named := checkpoint or workdir):
        raise UsageError("neither a checkpoint nor the folder of a run is given")
    path = find_checkpoint(Path(named))
    if not (home := workdir or run_of(path)):
        raise UsageError(f"--workdir is missing: {path} is of no run whose folder could be used")
    metadata, options = read_metadata(path), dict(options or {})
    own = own_config(metadata, path)
    base = own if recipe is None else with_data_of(recipe, own, metadata, options)
    config = with_options(base, options, path)
    if not (config.data.source and config.data.name):
        raise UsageError(
            f"{path} names no data, as a model that was converted: give --config FILE, a recipe "
            "that does"
        )
    # A model without data of its own is at home on those of the recipe.
    origin = own if own.data.source else base
    changes = changes_between(origin, config)
    overrides = deciding(changes)
    asked = {name: values for name, values in changes.items() if is_among(name, options)}
    said = f"{path}: as it says itself"
    if base is not own:
        said += f", data as the recipe says ({config.data.name})"
    said += f"; changed: {describe(asked)}" if asked else ""
    if recipe is not None:
        said += _not_counting(recipe, base, options)
    workdir = Path(home)
    return Setup(path, config, workdir / _aside(path, workdir, overrides), overrides, said)


def own_config(metadata: Mapping[str, Any], path: str | Path) -> ConfigDict:
    """The configuration in a checkpoint's metadata, with its files where they are now.

    Newer options have their defaults.

    Raises:
        UsageError: it is of a backbone alone, or of a head that nobody registered.
    """
    if "config" not in metadata:
        raise UsageError(
            f"{path} holds a backbone alone ({metadata.get('arch', 'of an unknown kind')}), which "
            f"knows no classes: train from it with --config.init_from={path}"
        )
    config, saved = default_config(), config_paths.located(metadata, run_of(Path(path)))
    if (name := saved["model"]["name"]) not in MODELS:
        raise UsageError(
            f"{path} has the head {name!r}, which is not of this package: give the recipe that "
            "registers it with --config, or import what does before prediction from Python"
        )
    with config.unlocked():
        for group, name in (option.split(".") for option in FREELY_NAMED):
            if name in saved.get(group, {}):  # not beside the default ones
                config[group][name] = ConfigDict()
        config.update(saved)
    return config


def with_data_of(
    recipe: ConfigDict, own: ConfigDict, metadata: Mapping[str, Any], options: Mapping[str, Any]
) -> ConfigDict:
    """A checkpoint's configuration on the data of a recipe, if they are not its own.

    How an image becomes what the model sees stays the checkpoint's. One that names no data has no
    protocol or calibration of its own either.

    Args:
        recipe: as its file says it.
        own: the checkpoint's configuration.
        metadata: the checkpoint's.
        options: set beside the recipe, which may make its data those of the checkpoint.
    """
    named = {name: options.get(f"data.{name}", recipe.data[name]) for name in ("source", "name")}
    of_checkpoint = {name: own.data[name] for name in named}
    if of_checkpoint in (named, {name: recipe.data[name] for name in named}):
        return own
    config = own.copy_and_resolve_references()
    config.data = recipe.data.copy_and_resolve_references()
    # A run of before there was a choice of the last two is of their defaults.
    said = {*metadata["config"].get("data", {}), "interpolation", "center_crop"}
    for name in set(_OF_MODEL) & said:
        config.data[name] = own.data[name]
    if not own.data.source:
        config.eval = recipe.eval.copy_and_resolve_references()
        config.calibration = recipe.calibration.copy_and_resolve_references()
    return config.lock()


def with_options(config: ConfigDict, options: Mapping[str, Any], path: Path) -> ConfigDict:
    """A copy with options set.

    Raises:
        UsageError: one is unknown, of another type, or decides the arrays of the checkpoint.
    """
    if "recipe" in options:
        raise UsageError(f"--config.recipe is how to train, and {path} is trained: leave it")
    changed = config.copy_and_resolve_references().lock()
    for name, value in options.items():
        try:
            changed.update_from_flattened_dict({name: value})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--config.{name}={value!r}: {path} cannot have it: {error}") from None
    for name, (old, _) in changes_between(config, changed).items():
        if name in (f"model.{option}" for option in ARRAY_OPTIONS):
            raise UsageError(
                f"--config.{name}: the arrays of {path} are of {name} {old!r} and fit no other"
            )
    return changed


def changes_between(old: ConfigDict, new: ConfigDict) -> Changes:
    """The options in which two configurations differ: {name: (old, new)}."""
    return changed_options(
        *(config_paths.absolute(json.loads(one.to_json())) for one in (old, new))
    )


def deciding(changes: Changes) -> Changes:
    """Those of the changed options that decide what is written of a split."""
    return {
        name: values
        for name, values in changes.items()
        if is_among(name, DECIDING) and not is_among(name, (*HOW, *_OF_TRAINING))
    }


def as_predicted(metadata: Mapping[str, Any], config: ConfigDict, path: str | Path) -> Changes:
    """The options with which prediction would say something else: {name: (its, now)}."""
    changes = changes_between(own_config(metadata, path), config)
    return {name: values for name, values in changes.items() if is_among(name, SAYING)}


def other_preprocessing(metadata: Mapping[str, Any], config: Any) -> Changes:
    """The options that prepare photos otherwise than for a checkpoint: {name: (its, now)}.

    What the checkpoint does not say, as converted weights may not, is not among them.

    Args:
        config: a configuration, or options of the same names.
    """
    noted = dict(metadata.get("preprocessing", {}))
    if "config" in metadata:  # a run of before there was a choice
        noted = {"interpolation": "bilinear", "center_crop": 0.0} | noted
    changes: Changes = {}
    for name, option in _PREPARED_BY.items():
        now = operator.attrgetter(option)(config)
        theirs = noted.get(name, now)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if theirs != now:
            changes[option] = theirs, now
    return changes


def folder_name(parts: Mapping[str, Any]) -> str:
    """A folder's name that says options: readable, safe everywhere, and no two have the same."""
    text = ",".join(f"{name}={_in_a_name(value)}" for name, value in parts.items())
    name = re.sub(r"[^\w.,=+-]+", "-", text, flags=re.ASCII)
    ambiguous = any(set(",=") & set(_in_a_name(value)) for value in parts.values())
    if name == text and len(name) <= LONGEST_NAME and not ambiguous:
        return name
    digest = _digest(text)
    return f"{name[: LONGEST_NAME - len(digest) - 1]}-{digest}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _in_a_name(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _aside(path: Path, workdir: Path, overrides: Changes) -> Path:
    """Where below a run's folder results belong: in it, if they are what the run says of itself."""
    parts = {name: new for name, (_, new) in overrides.items()}
    if run_checkpoints(workdir) and not _is_of_run(path, workdir):
        parts = {"checkpoint": _nickname(path, workdir)} | parts
    return Path(ASIDE, folder_name(parts)) if parts else Path()


def _nickname(path: Path, workdir: Path) -> str:
    """A checkpoint's step, if it is of the run in `workdir`; else a name that no other has."""
    run = run_of(path)
    if run and run.resolve() == workdir.resolve():
        return path.name
    return f"{f'{run.name}-' if run else ''}{path.name}-{_digest(str(path))}"


def _is_of_run(path: Path, workdir: Path) -> bool:
    """Whether a run says of itself what this checkpoint does: its best, and not resumed otherwise.

    Training evaluates the best checkpoint with the options that it had at last.
    """
    try:
        if find_checkpoint(workdir).resolve() != path.resolve():
            return False
        latest = latest_checkpoint(workdir) or path
        last, own = (own_config(read_metadata(one), one) for one in (latest, path))
        return not deciding(changes_between(last, own))
    except Failure:  # another one is damaged, and it cannot be told
        return False


def _not_counting(recipe: ConfigDict, used: ConfigDict, options: Collection[str]) -> str:
    """A line for a recipe that says something else than what is used."""
    differing = {
        name: values
        for name, values in deciding(changes_between(recipe, used)).items()
        if not is_among(name, options)
    }
    if not differing:
        return ""
    told = [f"{name} {old!r}" for name, (old, _) in list(differing.items())[:_MOST_TOLD]]
    more = f" and {len(differing) - len(told)} more" if len(differing) > len(told) else ""
    return f"\nnot taken from the recipe, of which only the data count: {', '.join(told)}{more}"


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


def is_among(name: str, options: Collection[str]) -> bool:
    """Whether an option is one of these, or of a group that is."""
    return any(name == option or name.startswith(f"{option}.") for option in options)


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

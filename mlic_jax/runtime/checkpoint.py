"""Saving and restoring, the only module that knows orbax.

A checkpoint holds `variables` ({"params", "batch_stats"}, and of a run that averages them "ema",
again such a pair) and `metadata` (JSON: configuration,
class names, preprocessing, position in the data, ...), and within a run also `training` (step,
optimiser state). Converted weights are the same without `training`. Orbax writes beside and renames
at the end, so a checkpoint either is complete or is not there; and every file of it is compared
with its digest before it is read.

The checkpoints of a run are `<workdir>/checkpoints/<step>`. Which is the best is written nowhere:
it follows from the validation that each of them has in its own metadata.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mlic_jax.command_line import mode_command
from mlic_jax.errors import Failure, UsageError, reason
from mlic_jax.files import digests
from mlic_jax.files.atomic import write_text
from mlic_jax.runtime.checkpoint_paths import candidates, run_checkpoints, step_of

Tree = dict[str, Any]
T = TypeVar("T")

DAMAGED = "damaged"  # the folder of a run where checkpoints are set aside


class DigestedHandler(ocp.StandardCheckpointHandler):
    """Orbax's, which also writes the digests of all files before the checkpoint is complete."""

    def finalize(self, directory: Path) -> None:
        super().finalize(directory)
        digests.write(Path(directory))


@ocp.args.register_with_handler(DigestedHandler, for_save=True)
class DigestedSave(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(DigestedHandler, for_restore=True)
class DigestedRestore(ocp.args.StandardRestore):
    """Orbax takes no handler without one, though nothing is restored by it."""


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Frees the space of what could not be written to its end."""
    for leftover in folder.glob(f"{glob.escape(name)}*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


# --- which checkpoint


def latest_checkpoint(workdir: Path) -> Path | None:
    """The folder of the latest complete checkpoint of a run; None where there is none."""
    return max(run_checkpoints(workdir), key=step_of, default=None)


def find_checkpoint(path: Path | str) -> Path:
    """The folder of the checkpoint that `path` means; see `load_weights`.

    Raises:
        UsageError: there is none.
        Failure: the metadata of a run's checkpoint is damaged, so that the best cannot be told.
    """
    found = candidates(path)
    if len(found) == 1:
        return found[0]
    return best_of({p: _validation(p) for p in found}) or max(found, key=step_of)


def _validation(checkpoint: Path) -> float | None:
    """The mAP of a checkpoint in validation, if there was one."""
    metadata = read_metadata(checkpoint)
    if checkpoint.parent.name == "best":  # of an earlier version
        return metadata["best"]["mAP"]
    return metadata.get("validation", {}).get("mAP")


def lacks_validation(checkpoint: Path) -> bool:
    """Whether a run was killed after it saved this one and before it was validated."""
    return checkpoint.parent.name == "checkpoints" and _validation(checkpoint) is None


def best_of(validations: Mapping[T, float | None]) -> T | None:
    """The first of the highest; None where nothing was validated."""
    known = {key: value for key, value in validations.items() if value is not None}
    return max(known, key=known.__getitem__, default=None)


# --- reading


def read_metadata(checkpoint: Path) -> Tree:
    """The metadata of the checkpoint in a folder.

    Raises:
        Failure: they are damaged or missing.
    """
    return _read_metadata(checkpoint)[0]


def _read_metadata(checkpoint: Path) -> tuple[Tree, bool]:
    """Metadata, and whether the checkpoint has digests."""
    path = _metadata_file(checkpoint)
    try:
        metadata, is_sealed = digests.unsealed(json.loads(path.read_text(encoding="utf-8")))
        if not is_sealed and (checkpoint / "variables" / digests.FILE).exists():
            raise Failure("it has no digest, and the arrays have theirs")
        step = metadata.get("step", checkpoint.name)
        if checkpoint.parent.name == "checkpoints" and str(step) != checkpoint.name:
            raise Failure(f"it is of step {step}")
        return metadata, is_sealed
    except FileNotFoundError:
        what = "is missing"
    except (OSError, ValueError, TypeError, RecursionError, Failure) as error:
        what = f"is damaged ({reason(error)})"
    raise Failure(f"{path} {what}. {_advice(checkpoint)}")


def check_digests(checkpoint: Path, items: Collection[str] = ("variables", "training")) -> None:
    """Compares all files of a checkpoint with their digests; earlier versions wrote none.

    Raises:
        Failure: names the file that is missing or not as it was written, and says what to do.
    """
    if not _read_metadata(checkpoint)[1]:
        return
    for item in items:
        try:
            digests.check(checkpoint / item)
        except Failure as error:
            raise Failure(f"{error}: the checkpoint is damaged. {_advice(checkpoint)}") from None


def _advice(checkpoint: Path) -> str:
    if checkpoint.name.isdigit():
        go_on = mode_command("train", "--recover", "...")
        return f"Of a run, `{go_on}` sets it aside and goes on from the last good one"
    return "Delete it, and convert it again"


def restore(checkpoint: Path, variables: Tree, training: Tree) -> tuple[Tree, Tree]:
    """Reads a run's checkpoint into the shapes and shardings of the given trees.

    Raises:
        Failure: it is damaged, or of other shapes.
    """
    check_digests(checkpoint)
    args = ocp.args.Composite(
        variables=ocp.args.StandardRestore(variables),
        training=ocp.args.StandardRestore(training),
    )
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.StandardCheckpointHandler(), training=ocp.StandardCheckpointHandler()
    )
    with _reading(checkpoint), ocp.Checkpointer(handler) as checkpointer:
        restored = checkpointer.restore(checkpoint, args=args)
    return restored["variables"], restored["training"]


def load_weights(path: Path, weights: str | None = None) -> tuple[Tree, Tree]:
    """Reads variables and metadata of a converted checkpoint, or of a run's best (else latest) one.

    Args:
        path: what `save_weights` wrote, one step's folder, or a run's workdir.
        weights: `raw`, those of the step, or `ema`, the average of them over the steps; None: as
            the checkpoint's configuration says (`eval.weights`).

    Returns:
        (variables, metadata); the arrays are NumPy's, whatever devices wrote them.

    Raises:
        UsageError: there is no checkpoint at `path`, or it has no average and that is wanted.
        Failure: it is damaged.
    """
    directory = find_checkpoint(path)
    metadata = read_metadata(directory)
    check_digests(directory, ("variables",))
    handler = ocp.CompositeCheckpointHandler(variables=ocp.PyTreeCheckpointHandler())
    with _reading(directory), ocp.Checkpointer(handler) as checkpointer:
        saved = checkpointer.handler.metadata(directory).item_metadata["variables"].tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        wanted = ocp.args.Composite(variables=ocp.args.PyTreeRestore(restore_args=restore_args))
        variables = checkpointer.restore(directory, args=wanted)["variables"]
    average = variables.pop("ema", None)
    weights = weights or metadata.get("config", {}).get("eval", {}).get("weights", "raw")
    if weights == "ema":
        if average is None:
            raise UsageError(f"eval.weights is ema, and {path} has no average of its weights")
        variables |= average
    return variables, metadata


@contextlib.contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Has whatever Orbax raises of a damaged checkpoint end in a line, and it say nothing else."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # of items that are not read, and of what is raised anyway
    try:
        yield
    except Exception as error:  # damaged files end in almost any exception
        raise Failure(
            f"the checkpoint {checkpoint} cannot be read ({reason(error)}). {_advice(checkpoint)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def set_damaged_aside(workdir: Path) -> list[str]:
    """Moves the damaged checkpoints of a run to `<workdir>/damaged`; gives what is wrong with each.

    Raises:
        Failure: they cannot be moved.
    """
    findings = []
    for path in run_checkpoints(workdir):
        try:
            check_digests(path)
        except Failure as failure:
            folder = Path(workdir).absolute() / DAMAGED
            names = (f"{path.name}-{k}" if k else path.name for k in itertools.count())
            target = next(folder / name for name in names if not (folder / name).exists())
            try:
                folder.mkdir(exist_ok=True)
                path.rename(target)
            except OSError as error:
                raise Failure(f"{path} cannot be moved to {target} ({error.strerror})") from error
            findings.append(str(failure).removesuffix(f". {_advice(path)}"))
    return findings


# --- writing


def update_metadata(checkpoint: Path, changes: Tree) -> Tree:
    """Sets keys of the metadata of a complete checkpoint; its arrays are not touched.

    The file is replaced whole: a reader finds the old metadata or the new.

    Args:
        checkpoint: its folder, as `find_checkpoint` gives it.
        changes: what JSON can hold, by key; the other keys stay as they are.

    Returns:
        All metadata as they are now.

    Raises:
        Failure: they cannot be read or written; they are as before.
    """
    metadata, has_digests = _read_metadata(checkpoint)
    try:
        text = json.dumps(metadata | changes, allow_nan=False)
        metadata = json.loads(text)
        if has_digests:
            text = json.dumps(digests.sealed(metadata))
        write_text(_metadata_file(checkpoint), text)
    except (OSError, ValueError) as error:
        raise Failure(f"the metadata of {checkpoint} cannot be changed: {error}") from error
    return metadata


def _metadata_file(checkpoint: Path) -> Path:
    return checkpoint / "metadata" / "metadata"


def save_weights(directory: Path, variables: Tree, info: Tree) -> None:
    """Writes variables of NumPy arrays and their metadata as one checkpoint.

    Raises:
        UsageError: the directory exists and is not empty.
        Failure: it cannot be written; nothing is left.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        if not directory.is_dir() or any(directory.iterdir()):
            raise UsageError(f"{directory} exists already; choose another output or delete it")
        directory.rmdir()
    handler = ocp.CompositeCheckpointHandler(
        variables=DigestedHandler(), metadata=ocp.JsonCheckpointHandler()
    )
    args = ocp.args.Composite(
        variables=DigestedSave(variables),
        metadata=ocp.args.JsonSave(digests.sealed(info)),
    )
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory, args=args)
    except Exception as error:  # of tensorstore or of the operating system
        remove_unfinished(directory.parent, directory.name)
        raise Failure(f"{directory} cannot be written ({reason(error)})") from error


def merge_weights(fresh: Tree, loaded: Tree, modules: Collection[str], source: str) -> Tree:
    """Puts loaded weights into freshly initialised variables.

    Only the top-level `modules` are taken; every one of their arrays must be there in the right
    shape and none may be left over. The rest (a classifier for other classes) stays fresh.

    Args:
        fresh: variables, {"params", "batch_stats"}.
        loaded: variables that `load_weights` read.
        modules: such as `("features",)`, the backbone.
        source: what errors call the loaded weights.

    Raises:
        Failure: lists every array that is missing, left over or of another shape.
    """

    def leaves(tree: Tree, collection: str) -> dict[str, Any]:
        taken = {name: part for name, part in tree.get(collection, {}).items() if name in modules}
        return {f"{collection}/{path}": leaf for path, leaf in _flatten(taken).items()}

    merged, wrong = {}, []
    for collection in fresh:
        into, given = leaves(fresh, collection), leaves(loaded, collection)
        wrong += [f"missing {name}" for name in sorted(into.keys() - given.keys())]
        wrong += [f"left over {name}" for name in sorted(given.keys() - into.keys())]
        wrong += [
            f"{name} is {given[name].shape}, the model's is {into[name].shape}"
            for name in sorted(into.keys() & given.keys())
            if given[name].shape != into[name].shape
        ]
        taken = {name: loaded.get(collection, {}).get(name) for name in modules}
        merged[collection] = {
            name: taken.get(name, part) for name, part in fresh[collection].items()
        }
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise Failure(f"the weights of {source} do not fit the model: {shown}")
    return merged


def digest_of_arrays(tree: Mapping[str, Any]) -> str:
    """By which arrays, in the order of a tree, are known: their names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _flatten(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

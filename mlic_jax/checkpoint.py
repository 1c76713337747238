"""Saving and restoring, the only module that knows orbax.

A checkpoint holds `variables` ({"params", "batch_stats"}) and `metadata` (JSON: configuration,
class names, preprocessing, position in the data, ...), and within a run also `training` (step,
optimiser state). Converted weights are the same without `training`. Orbax writes beside and renames
at the end, so a checkpoint either is complete or is not there.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mlic_jax import processes, profiling
from mlic_jax.atomic import write_text
from mlic_jax.errors import Failure, UsageError

Tree = dict[str, Any]

# A checkpoint that is being written carries this mark in its name until it is complete.
_UNFINISHED = "orbax-checkpoint-tmp"


class RunCheckpoints:
    """The checkpoints of a run: `<workdir>/checkpoints/latest` and `.../best`, a step a folder.

    Saving returns as soon as the arrays are copied and writes in the background. With many
    processes every method is called by all of them, each writes what its devices hold, and the
    folder is one that they share.
    """

    def __init__(self, workdir: Path):
        """Opens (and creates) the two folders; half-written checkpoints of a killed run go."""
        if jax.process_count() == 1:
            _write_arrays_whole()
        self._folders = {}
        for kind in ("latest", "best"):
            folder = Path(workdir).absolute() / "checkpoints" / kind
            if processes.is_first():
                for leftover in folder.glob(f"*{_UNFINISHED}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=1)
            self._folders[kind] = ocp.CheckpointManager(folder, options=options)

    @profiling.annotated(profiling.SAVE)
    def save(
        self, kind: str, step: int, variables: Tree, training: Tree | None, metadata: Tree
    ) -> None:
        """Saves as `latest` or `best`; a step that is already there is left as it is."""
        manager = self._folders[kind]
        if step in manager.all_steps():
            return
        items = {
            "variables": ocp.args.StandardSave(variables),
            "metadata": ocp.args.JsonSave(metadata),
        }
        if training is not None:
            items["training"] = ocp.args.StandardSave(training)
        manager.save(step, args=ocp.args.Composite(**items))

    def latest_path(self) -> Path | None:
        """The folder of the latest checkpoint, once it is complete; None where there is none."""
        manager = self._folders["latest"]
        manager.wait_until_finished()
        step = manager.latest_step()
        return None if step is None else Path(manager.directory) / str(step)

    def restore_latest(self, variables: Tree, training: Tree) -> tuple[Tree, Tree]:
        """Restores the latest checkpoint into the shapes and shardings of the given trees."""
        args = ocp.args.Composite(
            variables=ocp.args.StandardRestore(variables),
            training=ocp.args.StandardRestore(training),
        )
        restored = self._folders["latest"].restore(None, args=args)
        return restored["variables"], restored["training"]

    def close(self) -> None:
        """Waits for what is being written."""
        for manager in self._folders.values():
            manager.wait_until_finished()
            manager.close()
        processes.wait_for_all("checkpoints are complete")


def _write_arrays_whole() -> None:
    """Has one device write what all have.

    Orbax would cut every array for all of them, and compile every cut: half of the time of a small
    run. Where the devices are of many processes that is how they share the work, and it stays so.
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it would warn of what is meant
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    logging.set_verbosity(verbosity)


def latest_checkpoint(workdir: Path) -> Path | None:
    """The folder of the latest complete checkpoint of a run; None where there is none."""
    return _last_step(Path(workdir).absolute() / "checkpoints" / "latest")


def read_metadata(checkpoint: Path) -> Tree:
    """The metadata of the checkpoint in a folder."""
    return json.loads(_metadata_file(checkpoint).read_text(encoding="utf-8"))


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
    try:
        metadata = read_metadata(checkpoint) | changes
        write_text(_metadata_file(checkpoint), json.dumps(metadata, allow_nan=False))
    except (OSError, ValueError) as error:
        raise Failure(f"the metadata of {checkpoint} cannot be changed: {error}") from error
    return metadata


def _metadata_file(checkpoint: Path) -> Path:
    return checkpoint / "metadata" / "metadata"


def _last_step(folder: Path) -> Path | None:
    steps = (entry for entry in folder.glob("*") if entry.name.isdigit())
    return max(steps, key=lambda entry: int(entry.name), default=None)


def save_weights(directory: Path, variables: Tree, info: Tree) -> None:
    """Writes variables of NumPy arrays and their metadata as one checkpoint.

    Raises:
        UsageError: the directory exists and is not empty.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        if not directory.is_dir() or any(directory.iterdir()):
            raise UsageError(f"{directory} exists already; choose another output or delete it")
        directory.rmdir()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables), metadata=ocp.args.JsonSave(info)
        )
        checkpointer.save(directory, args=args)


def load_weights(path: Path) -> tuple[Tree, Tree]:
    """Reads variables and metadata of a converted checkpoint, or of a run's best (else latest) one.

    Args:
        path: what `save_weights` wrote, one step's folder, or a run's workdir.

    Returns:
        (variables, metadata); the arrays are NumPy's, whatever devices wrote them.

    Raises:
        UsageError: there is no checkpoint at `path`.
        Failure: it cannot be read.
    """
    directory = find_checkpoint(path)
    try:
        metadata = read_metadata(directory)
        with ocp.Checkpointer(_items()) as checkpointer:
            saved = checkpointer.metadata(directory).item_metadata["variables"].tree
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            wanted = ocp.args.Composite(variables=ocp.args.PyTreeRestore(restore_args=restore_args))
            variables = checkpointer.restore(directory, args=wanted)["variables"]
    except (OSError, ValueError, KeyError) as error:
        raise Failure(f"the checkpoint {directory} cannot be read: {error}") from error
    return variables, metadata


def _items() -> ocp.CompositeCheckpointHandler:
    """How each item of a checkpoint is stored."""
    return ocp.CompositeCheckpointHandler(
        variables=ocp.PyTreeCheckpointHandler(),
        training=ocp.PyTreeCheckpointHandler(),
        metadata=ocp.JsonCheckpointHandler(),
    )


def find_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint that `path` means; see `load_weights`."""
    path = Path(path).absolute()
    if not path.is_dir():
        raise UsageError(f"no checkpoint at {path}: there is no such folder")
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "latest"):
        if (folder / "variables").is_dir():
            return folder
        if step := _last_step(folder):
            return step
    raise UsageError(f"no checkpoint at {path}: it holds neither one nor a run with one")


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


def _flatten(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

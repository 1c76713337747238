"""The checkpoints of a run in training: saved beside the steps, the best and the latest kept."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from mlic_jax.errors import Failure, reason
from mlic_jax.files import digests
from mlic_jax.runtime import processes, profiling
from mlic_jax.runtime.checkpoint import (
    DigestedHandler,
    DigestedSave,
    Tree,
    best_of,
    read_metadata,
    remove_unfinished,
    update_metadata,
)
from mlic_jax.runtime.checkpoint_paths import steps_in

_DELETED = "deleted"  # where checkpoints lie that are about to go, so that none is half there


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: the loop asks JAX, which takes who asks last to be at that step.

        Orbax would ask again of this one once it is written, long after.
        """
        return False


class RunCheckpoints:
    """The checkpoints of a run: the latest few, and the best in validation.

    Saving returns as soon as the arrays are copied and writes in the background. With many
    processes every method is called by all of them, each writes what its devices hold, and the
    folder is one that they share.
    """

    def __init__(self, workdir: Path, keep: int = 2):
        """Opens (and creates) the folder; what a killed run was writing or deleting goes.

        Args:
            keep: how many of the latest are kept.

        Raises:
            Failure: the folder cannot be written, or a checkpoint in it is damaged.
        """
        if jax.process_count() == 1:
            _write_arrays_whole()
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._validations = {
            int(path.name): metadata["validation"]["mAP"]
            for path in steps_in(self._folder)
            if "validation" in (metadata := read_metadata(path))
        }
        with self._writing("a checkpoint"):
            self._remove_deleted()
            if processes.is_first():  # Orbax itself would do it some time before the first save
                remove_unfinished(self._folder)
                for path in self._folder.glob("*/metadata/.*.partial"):  # metadata in change
                    path.unlink(missing_ok=True)
            self._manager = _Manager(
                self._folder,
                item_handlers={
                    "variables": DigestedHandler(),
                    "training": DigestedHandler(),
                    "metadata": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=AnyPreservationPolicy([LatestN(keep), self]),
                    todelete_subdir=_DELETED,
                    lightweight_initialize=True,  # of its own metadata nothing is used
                ),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        """Closes; but one of many processes that fails does not wait for the others, which may wait
        for it elsewhere."""
        if error is None or jax.process_count() == 1:
            self.close()

    @profiling.annotated(profiling.SAVE)
    def save(self, step: int, variables: Tree, training: Tree, metadata: Tree) -> None:
        """Saves a step; one that is already there is left as it is.

        Raises:
            Failure: this one cannot be written, or the one before could not. Others stay.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            variables=DigestedSave(variables),
            training=DigestedSave(training),
            metadata=ocp.args.JsonSave(digests.sealed(metadata | {"step": step})),
        )
        with self._writing(f"the checkpoint of step {step}"):
            self._manager.wait_until_finished()
            self._remove_deleted()
            self._manager.save(step, args=items)

    def add_validation(self, step: int, mean_average_precision: float) -> None:
        """Notes in the checkpoint of a step, once it is complete, how good it is.

        Raises:
            Failure: it cannot be written.
        """
        self.wait()
        if processes.is_first():
            path = self._folder / str(step)
            update_metadata(path, {"validation": {"mAP": mean_average_precision}})
        self._validations[step] = mean_average_precision

    def best_step(self) -> int | None:
        """That of the best in validation, which is kept; None where nothing was validated."""
        return best_of(dict(sorted(self._validations.items())))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's question which checkpoints must stay: the best."""
        best = best_of({c.step: self._validations.get(c.step) for c in checkpoints})
        return [checkpoint.step == best for checkpoint in checkpoints]

    def latest_path(self) -> Path | None:
        """The folder of the latest checkpoint, once it is complete; None where there is none."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self._folder / str(step)

    def wait(self) -> None:
        """Returns once what was saved is complete.

        Raises:
            Failure: it cannot be written.
        """
        with self._writing("the last checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written; raises as `wait` does."""
        with self._writing("the last checkpoint"):
            self._manager.close()
            self._remove_deleted()
        processes.wait_for_all("checkpoints are complete")

    def _remove_deleted(self) -> None:
        if processes.is_first():
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Has whatever Orbax raises where it cannot write end in a line."""
        try:
            yield
        except Failure:
            raise
        except Exception as error:  # of tensorstore, of the operating system, of other threads
            if processes.is_first():
                remove_unfinished(self._folder)
            raise Failure(
                f"{what} cannot be written to {self._folder} ({reason(error)}); those that are "
                "there stay, and once it can be written the same command continues from the latest"
            ) from error


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

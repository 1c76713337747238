"""What a crash leaves on the disk, at thousands of moments of training runs.

A state is a copy of the workdir of a run that is stopped (SIGSTOP) meanwhile: what SIGKILL would
leave at that moment. Of each a second state is derived, what a loss of power could leave: files in
folders that are not complete yet, and files not yet under their names, are cut short, empty or
gone at will, and the logs that grow have lost their last bytes. What was complete is as it was:
Orbax writes arrays with fsync, and renames a folder when all of it is written; that a rename is not
on the disk before what it names is what journaling file systems see to.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from fuzzer import Broken, Fuzzer, answer
from tiny_run import (
    Process,
    TinyRuns,
    check_nothing_half_written,
    is_unfinished,
    metric_lines,
)

from mlic_jax.runtime.checkpoint import (
    find_checkpoint,
    latest_checkpoint,
    load_weights,
    read_metadata,
)
from mlic_jax.runtime.checkpoint_paths import run_checkpoints
from mlic_jax.runtime.run_checkpoints import RunCheckpoints

MOST_COPIES = 60  # of a run
RESUMED = 0.01  # the share of states from which a run is really resumed


class CrashState(Fuzzer):
    title = "What a crash leaves"
    units = "states"
    holds = (
        "every checkpoint is complete and verified, with the run's own weights at that step; the "
        "best is there, of all validations until then; opening the run clears away all that is "
        "half-written and nothing else; a hundredth of them is really resumed, to the same end"
    )
    share = 12
    seconds = 600

    def __init__(self, shared: Path):
        self._runs = TinyRuns(shared)
        self._weights: dict[str, list[bytes]] = {}  # of every step, once it is known
        lines = metric_lines(self._runs.alone)
        self._validations = {line["step"]: line["val/mAP"] for line in lines if "val/mAP" in line}

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        run = folder / "run"
        states = []
        with Process(self._runs.command(run)) as process:
            for k in range(rng.integers(1, MOST_COPIES + 1)):
                times, pause = int(rng.integers(1, 3)), rng.exponential(0.01)
                if not process.sleep_until_changed(run / "checkpoints", times):
                    break
                process.sleep(pause)
                if not process.stop():
                    break
                states.append(shutil.copytree(run, folder / f"{k}-killed"))
                process.send(signal.SIGCONT)
        for state in states:
            powerless = shutil.copytree(state, folder / state.name.replace("killed", "power"))
            lose_power(rng, powerless)
            for each, kind in ((state, "killed"), (powerless, "power lost")):
                step = self._check(each)
                if rng.random() < RESUMED:
                    self._runs.to_the_end(each)
                    # The lines that the log has lost are of steps that are not done again.
                    lost = ("metrics.jsonl",) if each is powerless else ()
                    self._runs.check_same_as_alone(each, lost)
                    kind += ", resumed"
                shutil.rmtree(each)
                yield kind if step else f"{kind} before the first checkpoint"

    def _check(self, state: Path) -> str | None:
        """The latest step; raises Broken with the name of the state."""
        try:
            latest = self._check_checkpoints(state)
            # As a run does that starts again.
            _, refusal = answer(lambda: RunCheckpoints(state).close())
            if refusal:
                raise Broken(f"the run cannot be opened: {refusal}")
            check_nothing_half_written(state / "checkpoints")
            if latest_checkpoint(state) != latest:
                raise Broken("opening it has changed which checkpoint is the latest")
        except Broken as broken:
            raise Broken(f"{state.name}: {broken}") from None
        return latest and latest.name

    def _check_checkpoints(self, state: Path) -> Path | None:
        """The latest, once all are checked."""
        latest = latest_checkpoint(state)
        if latest is None:
            return None
        validated = {}
        for checkpoint in run_checkpoints(state):
            self._check_weights(checkpoint)
            if validation := read_metadata(checkpoint).get("validation"):
                validated[int(checkpoint.name)] = validation["mAP"]
        # All that were validated until now, however many of them were deleted since.
        until = int(latest.name) - (int(latest.name) not in validated)
        expected = {step: value for step, value in self._validations.items() if step <= until}
        best = max(expected, key=expected.get, default=int(latest.name))
        found = find_checkpoint(state)
        if found.name != str(best) or validated.get(best) != expected.get(best):
            raise Broken(f"the best until {latest.name} is {best}, and there is {found.name}")
        return latest

    def _check_weights(self, checkpoint: Path) -> None:
        loaded, refusal = answer(lambda: load_weights(checkpoint))
        if refusal:
            raise Broken(f"{checkpoint.name} should be complete: {refusal}")
        leaves = [leaf.tobytes() for leaf in jax.tree.leaves(loaded[0])]
        if self._weights.setdefault(checkpoint.name, leaves) != leaves:
            raise Broken(f"{checkpoint.name} has other weights than the same step of another run")


def lose_power(rng: np.random.Generator, state: Path) -> None:
    """Turns what SIGKILL leaves into what a loss of power could leave; see above."""
    for file in sorted(path for path in state.rglob("*") if path.is_file()):
        if is_unfinished(file.relative_to(state)):
            match rng.integers(4):
                case 0:
                    file.unlink()
                case 1:
                    os.truncate(file, int(rng.integers(file.stat().st_size + 1)))
                case 2:
                    os.truncate(file, 0)
        elif file.name == "metrics.jsonl" or file.parent.name == "tensorboard":
            os.truncate(file, max(0, file.stat().st_size - int(rng.integers(200))))


FUZZER = CrashState

"""Training runs that are killed again and again, and end as one left alone."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fuzzer import Fuzzer
from tiny_run import Process, TinyRuns, half_written, strike

MOST_KILLS = 6  # of a run


class Kill(Fuzzer):
    title = "SIGKILL at any moment of training"
    units = "kills"
    holds = (
        "the command, given again, goes on to the end with exit code 0; parameters, metadata, "
        "losses, validations and scores are bit for bit those of a run left alone; nothing "
        "half-written remains"
    )
    share = 20
    seconds = 600

    def __init__(self, shared: Path):
        self._runs = TinyRuns(shared)

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        workdir = folder / "run"
        killed = []
        for _ in range(rng.integers(1, MOST_KILLS + 1)):
            with Process(self._runs.command(workdir)) as process:
                if strike(process, rng, workdir, self._runs.seconds):
                    process.send(signal.SIGKILL)
                    process.wait()
                    killed.append(moment_of(workdir))
        self._runs.to_the_end(workdir)
        self._runs.check_same_as_alone(workdir)
        shutil.rmtree(workdir)
        yield from killed


def moment_of(workdir: Path) -> str:
    """What a run was doing, told from what it left."""
    if half_written(workdir / "checkpoints"):
        return "while saving"
    if (workdir / "scores_test.npz").exists():
        return "in the report"
    return "in training" if (workdir / "metrics.jsonl").exists() else "at the start"


FUZZER = Kill

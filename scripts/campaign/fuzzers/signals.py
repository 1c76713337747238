"""Ctrl-C and SIGTERM at any moment of any command: one line, and the same command goes on."""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fuzzer import Broken, Fuzzer, last_lines
from tiny_run import Ended, Process, TinyRuns, photos, strike

MODES = ("train", "train", "train", "train", "evaluate", "calibrate", "predict", "prepare")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a process may end with: 0 where it stopped and saved, or was done before; else the shell's
# 128 + signal, or death by the signal itself.
_CODES = {number: (0, 128 + number, -number) for number in SIGNALS}


class Signals(Fuzzer):
    title = "Ctrl-C and SIGTERM"
    units = "signals"
    holds = (
        "the exit code is 0 where training stopped and saved, else 130 after Ctrl-C and 143 after "
        "SIGTERM; the last line says what happened, and there is no stack trace; the same command, "
        "given again, ends well, training bit for bit as a run left alone. From the moment on that "
        "JAX is being loaded: before, it is Python's own start that is interrupted"
    )
    share = 8
    seconds = 600

    def __init__(self, shared: Path):
        self._runs = TinyRuns(shared)
        self._photos = photos(shared / "photos")

    def run(self, rng: np.random.Generator, folder: Path) -> Iterator[str]:
        mode = MODES[rng.integers(len(MODES))]
        number = SIGNALS[rng.integers(len(SIGNALS))]
        twice = rng.random() < 0.2
        workdir, out = folder / "run", folder / "out"
        if mode not in ("train", "prepare"):
            shutil.copytree(self._runs.alone, workdir)
        command = self._runs.command(workdir, *self._options(mode, workdir, out))
        struck = False
        with Process(command) as process:
            if process.sleep_until_loading() and strike(
                process, rng, workdir, self._runs.seconds * (1.0 if mode == "train" else 0.6)
            ):
                process.send(number)
                struck = True
                if twice and process.sleep(rng.exponential(0.2)):
                    process.send(number)
            ended = process.wait()
        if struck:
            check_end(ended, number)
        elif ended.code:
            raise Broken(f"exit code {ended.code} without a signal: {last_lines(ended.err)}")
        self._runs.to_the_end(workdir, *self._options(mode, workdir, out))
        if mode in ("train", "evaluate"):
            self._runs.check_same_as_alone(workdir)
        if struck:
            stopped = "stopped" if ended.code else "saved or done"
            yield f"{number.name}, {mode}: {stopped}"

    def _options(self, mode: str, workdir: Path, out: Path) -> tuple[str, ...]:
        options = {
            "predict": (f"--checkpoint={workdir}", f"--images={self._photos}", f"--out={out}"),
            "prepare": (f"--config.data.prepared_dir={out}",),
        }
        return f"--mode={mode}", *options.get(mode, ())


def check_end(ended: Ended, number: signal.Signals) -> None:
    """Raises Broken where a process did not end as it should after a signal."""
    if ended.code not in _CODES[number]:
        raise Broken(f"{number.name}: exit code {ended.code}: {last_lines(ended.err)}")
    if re.search(r"Traceback|KeyboardInterrupt|Fatal Python error|Exception ignored", ended.err):
        raise Broken(f"{number.name}: it ends in a stack trace: {last_lines(ended.err)}")
    if ended.code == 128 + number and not ended.err.strip():
        raise Broken(f"{number.name}: exit code {ended.code} without a word")


FUZZER = Signals

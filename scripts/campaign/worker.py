"""One fuzzer in a process of its own, which may hang, crash or grow without harm to the others."""

import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fuzzer import Broken, last_lines, load

from mlic_jax.errors import Failure

SECONDS_TO_START = 600  # what all cases share, such as a run left alone that is to be compiled

SECONDS_TO_END = 10


@dataclass
class Outcome:
    """What came of a case: of the units that held how many of each kind, and what did not hold."""

    held: Counter = field(default_factory=Counter)
    broken: str | None = None


class Worker:
    """A context manager; its process is started when it is needed, and again after it died."""

    def __init__(self, name: str, shared: Path, log: Path):
        self._name, self._shared, self._log = name, shared, log
        self._seconds = load(name).seconds
        self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end(SECONDS_TO_END)

    def run(self, seed: int, case: int, folder: Path) -> Outcome:
        """Runs a case in an empty folder, within the time that its fuzzer allows."""
        if self._process is None:
            self.start()
        self._connection.send((seed, case, folder))
        try:
            if self._connection.poll(self._seconds):
                return self._connection.recv()
            broken = f"it had not ended after {self._seconds:g} s"
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            broken = f"its process ended with exit code {code}: {self._last_words()}"
        self._end()
        return Outcome(broken=broken)

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._name, self._shared, self._log)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        try:
            ready = self._connection.poll(SECONDS_TO_START) and self._connection.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:
            self._end()
            raise Failure(f"{self._name} cannot be started: {self._last_words()}")

    def _end(self, patience: float = 0) -> None:
        """Ends the process after so many seconds, with all that it started."""
        if self._process is not None:
            self._connection.close()
            self._process.join(patience)  # it ends by itself where nothing more can be asked
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not come to be the first of its group, or is gone
                self._process.kill()
            self._process.join()
            self._process = None

    def _last_words(self) -> str:
        return last_lines(self._log.read_text(errors="replace")) if self._log.is_file() else ""


def case_rng(name: str, seed: int, case: int) -> np.random.Generator:
    """The source of all that is random in a case."""
    return np.random.default_rng([seed, case, *name.encode()])


def _serve(connection: Connection, name: str, shared: Path, log: Path) -> None:
    os.setsid()  # so that whatever a case starts can be ended with it
    with log.open("w") as file:  # what libraries print is seen only where the process dies
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    fuzzer = load(name)(shared)
    connection.send(True)
    while True:
        try:
            seed, case, folder = connection.recv()
        except (EOFError, OSError):
            return
        outcome = Outcome()
        try:
            for kind in fuzzer.run(case_rng(name, seed, case), folder):
                outcome.held[kind] += 1
        except Broken as broken:
            outcome.broken = str(broken)
        except BaseException:  # of the fuzzer itself: to be seen, and mended
            outcome.broken = f"the fuzzer fails: {last_lines(traceback.format_exc())}"
        if outcome.broken is None:
            shutil.rmtree(folder, ignore_errors=True)
        log.write_text("")
        connection.send(outcome)

"""Doing the runs of a matrix, each in a process that may die: how they ended is kept on the disk.

A run leaves `outcome.json` in its folder: what it is worth on `val`, and what it took; or the one
line that says why it failed. Whatever has one is never run again; what was killed before, and has
`begun.json` alone, goes on from its last checkpoint. Both say of which options and data they are.
"""

import contextlib
import dataclasses
import errno
import json
import math
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from matrix.cells import RIDGE, Cell

from mlic_jax import config_paths
from mlic_jax.checkpoint_config import HOW, changed_options, describe, is_among
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text

OUTCOME, BEGUN, LOG = "outcome.json", "begun.json", "log.txt"
KILLED = "its process was killed, perhaps for want of memory"
# Options that change no figure. Where files lie does not either: their digests tell what they are.
SAME = {*HOW} - {"eval.every"}  # which says among how many checkpoints one is chosen
# A disk is full or broken: what is told of a run then is not how it ended.
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
ENDING = 20.0  # seconds that a process has to end by itself


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        recipe, arguments: what anyone can do it again with.
        config: the configuration that follows from them, as JSON, with absolute paths.
        mean_ap: of its best checkpoint on val, percent; None: it failed.
        seconds: that it took; None of a run that went on after it was killed.
        memory_mib: most of the process, where the system tells it.
        error: the line that says why it failed.
        data: digests of what it read, see `data.py`; None: an earlier version kept none.
    """

    recipe: str
    arguments: list[str]
    config: dict[str, Any]
    mean_ap: float | None
    seconds: float | None
    memory_mib: float | None
    error: str = ""
    data: dict[str, str] | None = None

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """That of a file; None where there is none.

        Raises:
            Failure: it is no such file.
        """
        if not path.exists():
            return None
        with contextlib.suppress(Failure, TypeError):
            found = cls(**json_text.read(path))
            value = found.mean_ap
            is_value = value is None or (isinstance(value, float) and math.isfinite(value))
            if is_value and isinstance(found.config, dict):
                return found
        raise Failure(f"{path} is no outcome of a run: remove it to run it again")

    def save(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1))


class Stopped(Failure):
    """A run could not go on for what is not its own doing; the same command goes on with it."""


class Worker:
    """A process that does one run after the other; another takes its place when it dies."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._here.close()
        if error is None:  # it ends by itself, and tidies up
            self._process.join(ENDING)
        self._process.kill()
        self._process.join()

    def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns.

        Raises:
            Stopped: the disk is full or broken.
            Failure: of `work`, in a line whatever it was; or the process dies of it.
        """
        if not self._process.is_alive():  # it was killed between two runs
            self._start()
        try:
            self._here.send((work, arguments))
            value, error = self._here.recv()
        except (EOFError, BrokenPipeError):
            self._start()
            raise Failure(KILLED) from None
        if error is not None:
            raise error
        return value

    def _start(self) -> None:
        # Of one that is killed Python would warn of what it could not tidy up.
        os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
        spawn = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()


def _serve(there: Connection) -> None:
    """Does what comes through a pipe, until that is closed."""
    os.setsid()  # Ctrl-C is for the command, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin()
    with contextlib.suppress(EOFError):
        while True:
            work, arguments = there.recv()
            value, error = None, None
            try:
                value = work(*arguments)
            except KeyboardInterrupt as stop:
                error = stop
            except Exception as failure:
                error = (Stopped if _is_of_the_disk(failure) else Failure)(_said(failure))
            there.send((value, error))


def _said(error: Exception) -> str:
    """A line, also of no memory on a GPU, or of what nobody expected, which the log tells."""
    if isinstance(error, (Failure, UsageError)):
        return str(error)
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:300]


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether an error is, or came of, one of `OF_THE_DISK`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with_parent() -> None:
    """Has nobody train in a folder that the next command trains in."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def earlier(
    cell: Cell, rate: float | None, folder: Path, data: Mapping[str, str], retry: bool = False
) -> Outcome | None:
    """How a run ended, if it has; with `retry` one that failed has not.

    Args:
        data: the digests of what it would read now.

    Raises:
        UsageError: what is in its folder is a run of another configuration, or of other data.
    """
    done = Outcome.load(folder / OUTCOME)
    if done is not None and done.error and retry:
        return None
    begun = done or Outcome.load(folder / BEGUN)
    if begun is not None:
        now = config_paths.absolute(json.loads(cell.config(rate).to_json()))
        changes = changed_options(begun.config, now)
        changes = {name: of for name, of in changes.items() if not is_among(name, SAME)}
        if changes:
            raise UsageError(
                f"{folder} is a run of other options: {describe(changes)}; give another --out"
            )
        if begun.data is not None and begun.data != data:
            names = sorted({*begun.data.items()} ^ {*data.items()})
            raise UsageError(
                f"{folder} is a run of other data: {', '.join(dict(names))} changed since; give "
                "another --out"
            )
    return done


def run(
    worker: Worker, cell: Cell, rate: float | None, folder: Path, data: dict[str, str]
) -> Outcome:
    """Does a run up to its last validation, from where it was, and keeps how it ended.

    Raises:
        Stopped: it could not go on for want of a sound disk; nothing is kept of that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_new = not (folder / BEGUN).exists()
    config = config_paths.absolute(json.loads(cell.config(rate).to_json()))
    begun = Outcome(cell.recipe, cell.arguments(rate), config, None, None, None, data=data)
    begun.save(folder / BEGUN)
    start = time.monotonic()
    try:
        mean_ap, memory = worker.do(train, cell, rate, folder)
        outcome = dataclasses.replace(begun, mean_ap=mean_ap, memory_mib=memory)
    except Stopped:
        raise
    except Failure as error:
        outcome = dataclasses.replace(begun, error=str(error))
    if is_new:
        outcome = dataclasses.replace(outcome, seconds=time.monotonic() - start)
    outcome.save(folder / OUTCOME)
    return outcome


# --- in the worker


def train(cell: Cell, rate: float | None, folder: Path) -> tuple[float, float | None]:
    """The mAP on `val` of the best checkpoint of a run, and the most memory that it took in MiB.

    Raises:
        KeyboardInterrupt: the run was asked to stop, and is not at its end.
    """
    from mlic_jax.runtime.checkpoint import find_checkpoint, read_metadata
    from mlic_jax.train.loop import train

    _forget_peak()
    with _logging_to(folder / LOG):
        if cell.method.head.name == RIDGE:
            from matrix.ridge import fit

            return fit(cell.config(rate), folder), _peak_mib()
        if not train(cell.config(rate), folder, evaluate=False):
            raise KeyboardInterrupt
    metadata = read_metadata(find_checkpoint(folder))
    return metadata["validation"]["mAP"], _peak_mib()


def evaluate(cell: Cell, rate: float | None, folder: Path) -> None:
    """Writes the score file and the metrics of a run's best checkpoint on the test split."""
    from mlic_jax.evaluate.run import evaluate_run

    with _logging_to(folder / LOG):
        if not evaluate_run(cell.config(rate), folder):
            raise Failure("no label of the test split is known: nothing can be compared on it")


def _begin() -> None:
    from absl import logging as absl_logging

    from mlic_jax.command_line import hush_pillow, show_log
    from mlic_jax.runtime import compilation

    absl_logging.set_verbosity(absl_logging.FATAL)
    hush_pillow()
    show_log()
    compilation.keep_programs()


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """All that the process and its libraries say inside goes to the end of a file."""
    before = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    except (Failure, UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        traceback.print_exception(error)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in enumerate(before, 1):
            os.dup2(descriptor, stream)
            os.close(descriptor)


def _forget_peak() -> None:
    """Has `_peak_mib` begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float | None:
    """The most memory that this process has had since; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024

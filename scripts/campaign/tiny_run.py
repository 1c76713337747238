"""A training run of seconds on generated scenes, and what must be equal of two that ended."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fuzzer import Broken, last_lines
from PIL import Image

from mlic_jax.runtime.checkpoint import find_checkpoint, latest_checkpoint, load_weights

ROOT = Path(__file__).resolve().parents[2]
CHANGES = 60  # of the names among its checkpoints, about as many as a whole run makes
# Names that something half-written has, or a folder around it.
_UNFINISHED = ("*orbax-checkpoint-tmp*", "*.partial", "deleted")

_OPTIONS = (
    *("--config", "configs/mcar_scenes.py", "--config.data.name=tiny_scenes"),
    *("--config.data.scenes_sizes=(20, 9, 11)", "--config.data.image_size=64"),
    *("--config.epochs=8", "--config.batch_size=8", "--config.log_every=1"),
    *("--config.checkpoint_every=2", "--config.eval.every=1", "--config.model.width=0.125"),
    "--config.eval.protocol=voc2007",
)
_SECONDS = 300  # that a run may take at most, however busy the machine
_POLL = 0.002


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code (negative: the signal) and what it printed."""

    code: int
    out: str
    err: str

    def check_one_line(self, *codes: int) -> None:
        """Raises Broken unless it ended with one of these codes, and said why in its last line.

        Before it there are lines of the log and of progress bars, but nothing of a stack trace.
        """
        said = re.split(r"[\r\n]+", self.err.strip())
        if self.code not in codes:
            wanted = " or ".join(map(str, codes))
            raise Broken(f"exit code {self.code}, not {wanted}: {last_lines(self.err)}")
        if "Traceback" in self.err or not said[-1].startswith("error: "):
            raise Broken(f"it does not end in a line `error: ...`: {last_lines(self.err)}")


class TinyRuns:
    """Starts the real command, as a person does."""

    def __init__(self, shared: Path):
        """Trains once to the end, left alone, in a folder that all fuzzers share."""
        self.prepared, self.alone = shared / "prepared", shared / "alone"
        measured = shared / "alone.seconds"
        if not measured.is_file():
            for _ in range(2):  # if the first one has to compile, it is no measure of the others
                shutil.rmtree(self.alone, ignore_errors=True)
                start = time.monotonic()
                if "(an earlier run had compiled it)" in self.to_the_end(self.alone).err:
                    break
            measured.write_text(f"{time.monotonic() - start}")
        self.seconds = float(measured.read_text())

    def command(self, workdir: Path, *more: str) -> list[str]:
        prepared = f"--config.data.prepared_dir={self.prepared}"
        start = (sys.executable, "-m", "mlic_jax.main")
        recipe = [*_OPTIONS, prepared, "--workdir", str(workdir)]
        return [*start, *([] if "--mode=predict" in more else recipe), *more]

    def to_its_end(self, workdir: Path, *more: str) -> Ended:
        """Runs it until it ends, well or not."""
        with Process(self.command(workdir, *more)) as process:
            return process.wait()

    def to_the_end(self, workdir: Path, *more: str) -> Ended:
        """Runs it, and it has to end well."""
        ended = self.to_its_end(workdir, *more)
        if ended.code:
            raise Broken(f"the run ends with exit code {ended.code}: {last_lines(ended.err)}")
        return ended

    @functools.cached_property
    def _expected(self) -> dict[str, Any]:
        return results(self.alone)

    def check_same_as_alone(self, workdir: Path, lost: tuple[str, ...] = ()) -> None:
        """Raises Broken where a run that ended is not, bit for bit, as the one left alone.

        Args:
            lost: how the names of those results begin that no run could bring back.
        """
        found, expected = results(workdir), self._expected
        if found.keys() != expected.keys():
            raise Broken(f"it has {sorted(found)}, the run left alone {sorted(expected)}")
        for name, value in expected.items():
            if not (name.startswith(lost) or _same(found[name], value)):
                raise Broken(f"{name} is another than that of the run left alone")
        check_nothing_half_written(workdir)


class Process:
    """A process that is struck while it runs; a context manager that ends it at last.

    What it prints is read all the time, so that it never waits for anyone.
    """

    def __init__(self, command: list[str], **options: Any):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._popen = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options)
        self._printed: dict[str, list[bytes]] = {"out": [], "err": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", self._popen.stdout), ("err", self._popen.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Any) -> None:
        with stream:
            while part := os.read(stream.fileno(), 65536):
                self._printed[name].append(part)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.runs:
            self._popen.kill()
        self._popen.wait()

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: int) -> None:
        """Sends a signal."""
        self._popen.send_signal(number)

    def stop(self) -> bool:
        """Stops it (SIGSTOP), all of its threads; whether it is stopped and has not ended."""
        self.send(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._popen.pid}/task")
        while self.runs:
            with contextlib.suppress(OSError):  # a thread that ends meanwhile
                states = {
                    (task / "stat").read_text().rpartition(")")[2][1] for task in tasks.iterdir()
                }
                if states <= {"T"}:
                    return True
            time.sleep(_POLL)
        return False

    def printed(self, name: str) -> str:
        """What it printed so far to `out` or `err`."""
        return b"".join(self._printed[name]).decode(errors="replace")

    def sleep(self, seconds: float) -> bool:
        """Waits while it runs; whether it still does."""
        end = time.monotonic() + seconds
        while self.runs and time.monotonic() < end:
            time.sleep(min(_POLL, max(end - time.monotonic(), 0)))
        return self.runs

    def sleep_until_loading(self) -> bool:
        """Waits until JAX is being loaded; whether it runs."""
        maps = Path(f"/proc/{self._popen.pid}/maps")
        with contextlib.suppress(OSError):  # it ends meanwhile
            while self.runs and "jaxlib" not in maps.read_text():
                time.sleep(_POLL)
        return self.runs

    def sleep_until_changed(self, folder: Path, times: int) -> bool:
        """Waits until names have come or gone `times` times below a folder; whether it runs."""
        for _, _ in zip(range(times), changes(folder, lambda: self.runs), strict=False):
            pass
        return self.runs

    def wait(self) -> Ended:
        """What came of it; raises Broken where it does not end."""
        try:
            code = self._popen.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken(f"it does not end: {last_lines(self.printed('err'))}") from None
        for reader in self._readers:
            reader.join()
        return Ended(code, self.printed("out"), self.printed("err"))


def changes(folder: Path, goes_on: Any) -> Iterator[None]:
    """Once for every change that is seen of the names two levels below a folder."""
    seen = None
    while goes_on():
        with contextlib.suppress(OSError):  # a folder that goes meanwhile
            found = {*folder.glob("*"), *folder.glob("*/*")}
            if found != seen and seen is not None:
                yield
            seen = found
        time.sleep(_POLL)


def strike(process: Process, rng: np.random.Generator, workdir: Path, seconds: float) -> bool:
    """Waits for a moment to strike at; whether the process still runs then.

    Half of the moments are anywhere in its time, and half shortly after something has changed among
    its checkpoints: while one is written, completed or deleted.
    """
    if rng.random() < 0.5:
        return process.sleep(rng.uniform(0.2, seconds))
    times, pause = int(rng.integers(1, CHANGES)), rng.exponential(0.01)
    return process.sleep_until_changed(workdir / "checkpoints", times) and process.sleep(pause)


# --- what a run leaves


def results(workdir: Path) -> dict[str, Any]:
    """All that two runs of the same recipe must have in common, by name."""
    try:
        found: dict[str, Any] = {"metrics.jsonl": metric_lines(workdir)}
        for kind, folder in (
            ("best", find_checkpoint(workdir)),
            ("latest", latest_checkpoint(workdir)),
        ):
            variables, metadata = load_weights(folder)
            del metadata["folder"]  # where the run is
            found |= {f"{kind} step": folder.name, f"{kind} metadata": metadata}
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
                found[f"{kind}{jax.tree_util.keystr(path)}"] = leaf
        with np.load(workdir / "scores_test.npz") as scores:
            found |= {f"scores_test.npz {name}": scores[name] for name in scores.files}
        found["metrics_test.json"] = json.loads((workdir / "metrics_test.json").read_text())
        return found
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Broken(f"the run has not left what it should have: {error}") from error


def metric_lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "images_per_second"}
        for line in lines
    ]


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and found.dtype == expected.dtype
            and np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
        )
    return found == expected


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder, or one that it is in, is marked as half-written by its name."""
    return any(fnmatch(part, mark) for part in path.parts for mark in _UNFINISHED)


def half_written(folder: Path) -> list[str]:
    """What is marked so below a folder."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in paths if is_unfinished(path))


def check_nothing_half_written(workdir: Path) -> None:
    """Raises Broken where something is left that was never finished."""
    if left := half_written(workdir):
        raise Broken(f"half-written and left: {', '.join(left[:5])}")


def photos(folder: Path) -> Path:
    """A folder of a few small photos, of noise."""
    if not folder.is_dir():
        folder.mkdir()
        for k in range(6):
            pixels = np.random.default_rng(k).integers(0, 256, (40 + k, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.jpg")
    return folder

"""The measurement: first whether all compute the same, then time in turns, then peak memory."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from comparison import Case, Comparison, Task
from frameworks import available_cores
from worker import Worker, start_case, start_probe

from mlic_jax.errors import Failure

FRAMEWORK_TITLES = {
    "jax": "JAX",
    "torch": "PyTorch",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "host": "NumPy",
}
CPU = "CPU"


@dataclass(frozen=True)
class Row:
    """What was measured of a case.

    Attributes:
        case: the case.
        seconds: of every round.
        started: when each began, on one clock for all rows.
        peak_bytes: at most in use above the level before a call; None where unknown.
        difference: the largest of its outputs from those of the task's first case, relative to the
            largest value there; None where they are not compared.
    """

    case: Case
    seconds: tuple[float, ...]
    started: tuple[float, ...]
    peak_bytes: int | None
    difference: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Measured:
    """The rows of a task, in the order of its cases; the first is what the others are relative to.

    Attributes:
        task: the task.
        rows: of the cases whose framework is installed.
    """

    task: Task
    rows: tuple[Row, ...]

    def time_ratio(self, row: Row) -> float:
        """How many times as long as the first it takes."""
        return row.median / self.rows[0].median

    def peak_ratio(self, row: Row) -> float | None:
        """How many times the memory of the first it needs; None where either is unknown."""
        known = row.peak_bytes is not None and self.rows[0].peak_bytes
        return row.peak_bytes / self.rows[0].peak_bytes if known else None

    @property
    def spread(self) -> float:
        """The widest range of a case's times, relative to its median."""
        return max((max(row.seconds) - min(row.seconds)) / row.median for row in self.rows)


@dataclass(frozen=True)
class Table:
    """All that was measured on one device."""

    device: str
    tasks: tuple[Measured, ...]


@dataclass(frozen=True)
class Machine:
    """Where it is measured.

    Attributes:
        cpu: and how many of its cores.
        versions: of the frameworks that there are.
        accelerators: by framework, of those that see one.
    """

    cpu: str
    versions: Mapping[str, str]
    accelerators: Mapping[str, str]

    def missing(self, comparison: Comparison) -> list[str]:
        """The frameworks that a comparison wants and that are not installed, for people."""
        return [
            FRAMEWORK_TITLES[framework]
            for framework in comparison.frameworks
            if framework not in self.versions
        ]


def look_around(frameworks: Iterable[str]) -> Machine:
    """Which of these frameworks there are, and the devices that they see."""
    versions, accelerators = {}, {}
    for framework in dict.fromkeys(frameworks):
        with start_probe(framework) as probe:
            found = probe.call("describe")
        if found:
            versions[framework] = found[0]
            if found[1]:
                accelerators[framework] = found[1]
    return Machine(_cpu(), versions, accelerators)


def plan(comparison: Comparison, machine: Machine) -> list[tuple[str, Task]]:
    """(device, task with the cases that can run there) of all there is to measure.

    That is every task on the CPU, then on the accelerator those that we do on one.
    """
    accelerator = " / ".join(dict.fromkeys(machine.accelerators.values()))
    found = []
    for device, frameworks in ((CPU, machine.versions), (accelerator, machine.accelerators)):
        for task in comparison.tasks:
            cases = tuple(case for case in task.cases if case.framework in frameworks)
            if cases[:1] == task.cases[:1]:
                found.append((device, replace(task, cases=cases)))
    return found


def measure(
    name: str,
    planned: Sequence[tuple[str, Task]],
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> tuple[list[Table], list[str]]:
    """Measures one task after the other.

    Args:
        name: of the comparison, or its path.
        planned: from `plan`.
        rounds: how often every case is timed.
        seconds: no further round begins once the rounds of a task have taken so long.
        note: told in a line what is going on.

    Returns:
        A table a device, and a line for every task that failed: a case of it stopped, or computes
        something else than the first.
    """
    tables: dict[str, list[Measured]] = {}
    failures = []
    for device, task in planned:
        note(f"{task.title}, on the {device}")
        try:
            rows = _measure_task(name, task, device != CPU, rounds, seconds)
        except Failure as failure:
            failures.append(str(failure))
            continue
        tables.setdefault(device, []).append(Measured(task, rows))
    return [Table(device, tuple(tasks)) for device, tasks in tables.items()], failures


def _measure_task(
    name: str, task: Task, accelerated: bool, rounds: int, seconds: float
) -> tuple[Row, ...]:
    with contextlib.ExitStack() as stack:
        workers, outputs = [], []
        for case in task.cases:
            worker = start_case(name, task, case.variant, accelerated)
            workers.append(stack.enter_context(worker))
            outputs.append(worker.call("outputs"))
        differences = _differences(task, outputs)
        del outputs
        times = _take_turns(workers, rounds, seconds)
        # At last, for it changes how a process allocates.
        peaks = [worker.call("peak") if task.measures_memory else None for worker in workers]
    return tuple(
        Row(
            case=case,
            seconds=tuple(seconds for _, seconds in of_case),
            started=tuple(start for start, _ in of_case),
            peak_bytes=peak,
            difference=difference,
        )
        for case, of_case, peak, difference in zip(
            task.cases, times, peaks, differences, strict=True
        )
    )


def _take_turns(
    workers: Sequence[Worker], rounds: int, seconds: float
) -> list[list[tuple[float, float]]]:
    """(start, seconds) of every round of every worker: A B C, A B C, ...

    What changes slowly, such as a clock rate or the load of the machine, meets all alike.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in workers]
    start = time.monotonic()
    for done in range(rounds):
        if done and time.monotonic() - start > seconds:
            break
        for worker, of_worker in zip(workers, times, strict=True):
            of_worker.append(worker.call("time"))
    return times


def _differences(task: Task, outputs: Sequence[Mapping[str, np.ndarray]]) -> list[float | None]:
    """How far each is from the first; raises Failure where that is more than the tolerance."""
    if task.tolerance is None:
        return [None] * len(outputs)
    first, expected = task.cases[0], outputs[0]
    differences = []
    for case, got in zip(task.cases, outputs, strict=True):
        shapes = {name: array.shape for name, array in got.items()}
        wanted = {name: array.shape for name, array in expected.items()}
        if shapes != wanted:
            raise Failure(
                f"{task.title}: {case.variant} returns {shapes}, {first.variant} {wanted}: they do "
                "not compute the same, and nothing was timed"
            )
        tolerance = task.tolerance if case.tolerance is None else case.tolerance
        by_output = {name: _difference(got[name], expected[name]) for name in got}
        for name, difference in by_output.items():
            if not difference <= tolerance:  # NaN as well
                raise Failure(
                    f"{task.title}: the output {name!r} of {case.variant} differs from that of "
                    f"{first.variant} by {difference:.2g} of its largest value, more than "
                    f"{tolerance:.2g}: they do not compute the same, and nothing was timed"
                )
        differences.append(max(by_output.values(), default=0.0))
    return differences


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    furthest = np.max(np.abs(got - expected), initial=0.0)
    return float(furthest / (np.max(np.abs(expected), initial=0.0) or 1.0))


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = " ".join(line.partition(":")[2].split())
                break
    return f"{available_cores()} cores of {model}"

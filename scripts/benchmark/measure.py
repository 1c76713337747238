"""The measurement: first whether all compute the same, then time in turns, then peak memory."""

import contextlib
import itertools
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from comparison import Case, Comparison
from frameworks import available_cores
from worker import Worker, start_case, start_probe

from mlic_jax.errors import Failure

FRAMEWORK_TITLES = {"jax": "JAX", "torch": "PyTorch", "host": "NumPy"}


@dataclass(frozen=True)
class Row:
    """What was measured of a case.

    Attributes:
        task: of the case.
        variant: of the case.
        seconds: of every round.
        started: when each began, on one clock for all rows.
        peak_bytes: at most in use above the level before a call; None where unknown.
        difference: the largest of its outputs from those of the task's first case, relative to the
            largest value there.
    """

    task: str
    variant: str
    seconds: tuple[float, ...]
    started: tuple[float, ...]
    peak_bytes: int | None
    difference: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Table:
    """All rows of one device, those of a task next to each other."""

    device: str
    rows: tuple[Row, ...]

    def first_of(self, row: Row) -> Row:
        """The row of the same task that others are relative to."""
        return next(other for other in self.rows if other.task == row.task)


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        cpu: and how many of its cores.
        versions: of the frameworks that there are, by title.
        accelerators: by framework, of those that see one.
        missing: the frameworks that are wanted and not installed.
    """

    cpu: str
    versions: Mapping[str, str]
    accelerators: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def look_around(comparison: Comparison) -> Machine:
    """The frameworks of a comparison and the devices that they see."""
    versions, accelerators, missing = {}, {}, []
    for framework in dict.fromkeys(case.framework for case in comparison.cases):
        with start_probe(framework) as probe:
            found = probe.call("describe")
        if found is None:
            missing.append(framework)
            continue
        versions[FRAMEWORK_TITLES[framework]] = found[0]
        if found[1]:
            accelerators[framework] = found[1]
    return Machine(_cpu(), versions, accelerators, tuple(missing))


def measure(
    name: str,
    comparison: Comparison,
    machine: Machine,
    rounds: int,
    note: Callable[[str], None] = lambda line: None,
) -> list[Table]:
    """Runs every case on the CPU, and where a framework sees an accelerator there as well.

    Args:
        name: of the comparison, or its path.
        comparison: at the sizes wanted.
        machine: from `look_around`.
        rounds: how often every case is timed.
        note: told in a line what is going on.

    Returns:
        A table a device.

    Raises:
        Failure: a case fails, or computes something else than the first of its task.
    """
    cpu = [
        (index, case)
        for index, case in enumerate(comparison.cases)
        if case.framework not in machine.missing
    ]
    there = [(index, case) for index, case in cpu if case.framework in machine.accelerators]
    tables = []
    for device, cases in (("CPU", cpu), (_accelerator(machine), there)):
        rows = []
        for task, of_task in itertools.groupby(cases, key=lambda indexed: indexed[1].task):
            note(f"{device}, {task}")
            accelerated = device != "CPU"
            rows += _measure_task(name, comparison, list(of_task), accelerated, rounds)
        if rows:
            tables.append(Table(device, tuple(rows)))
    return tables


def _measure_task(
    name: str,
    comparison: Comparison,
    cases: Sequence[tuple[int, Case]],
    accelerated: bool,
    rounds: int,
) -> list[Row]:
    with contextlib.ExitStack() as stack:
        workers, outputs = [], []
        for index, case in cases:
            title = f"{case.task}, {case.variant}"
            worker = start_case(name, comparison.sizes, index, title, accelerated)
            workers.append(stack.enter_context(worker))
            outputs.append(worker.call("outputs"))
        differences = _differences([case for _, case in cases], outputs, comparison.tolerance)
        del outputs
        times = _take_turns(workers, rounds)
        # At last, for it changes how a process allocates.
        peaks = [worker.call("peak") if comparison.measures_memory else None for worker in workers]
    return [
        Row(
            task=case.task,
            variant=case.variant,
            seconds=tuple(seconds for _, seconds in of_case),
            started=tuple(start for start, _ in of_case),
            peak_bytes=peak,
            difference=difference,
        )
        for (_, case), of_case, peak, difference in zip(
            cases, times, peaks, differences, strict=True
        )
    ]


def _take_turns(workers: Sequence[Worker], rounds: int) -> list[list[tuple[float, float]]]:
    """(start, seconds) of every round of every worker: A B C, A B C, ...

    What changes slowly, such as a clock rate or the load of the machine, meets all alike.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in workers]
    for _ in range(rounds):
        for worker, of_worker in zip(workers, times, strict=True):
            of_worker.append(worker.call("time"))
    return times


def _differences(
    cases: Sequence[Case], outputs: Sequence[Mapping[str, np.ndarray]], tolerance: float
) -> list[float]:
    """How far each is from the first; raises Failure where that is more than the tolerance."""
    first, expected = cases[0], outputs[0]
    differences = []
    for case, got in zip(cases, outputs, strict=True):
        shapes = {name: array.shape for name, array in got.items()}
        wanted = {name: array.shape for name, array in expected.items()}
        if shapes != wanted:
            raise Failure(
                f"{case.task}: {case.variant} returns {shapes}, {first.variant} {wanted}: they do "
                "not compute the same, and nothing was timed"
            )
        by_output = {name: _difference(got[name], expected[name]) for name in got}
        for name, difference in by_output.items():
            if not difference <= tolerance:  # NaN as well
                raise Failure(
                    f"{case.task}: the output {name!r} of {case.variant} differs from that of "
                    f"{first.variant} by {difference:.2g} of its largest value, more than "
                    f"{tolerance:.2g}: they do not compute the same, and nothing was timed"
                )
        differences.append(max(by_output.values(), default=0.0))
    return differences


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    furthest = np.max(np.abs(got - expected), initial=0.0)
    return float(furthest / (np.max(np.abs(expected), initial=0.0) or 1.0))


def _accelerator(machine: Machine) -> str:
    return " / ".join(dict.fromkeys(machine.accelerators.values()))


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = " ".join(line.partition(":")[2].split())
                break
    return f"{available_cores()} cores of {model}"

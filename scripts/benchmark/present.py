"""A measurement for people and programs: Markdown, JSON, a chart, and a place in a page."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comparison import Comparison, Task
from measure import CPU, FRAMEWORK_TITLES, Machine, Measured, Row, Table

from mlic_jax.files.atomic import written_whole
from mlic_jax.files.marked import update_page

MEGABYTE = 2**20  # as in the column heads of every tool that shows a process's memory

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # of variants
_GAP = 0.4  # between the bars of two tasks
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlic_jax",  # the same chart is the same bytes
}


@dataclass(frozen=True)
class Results:
    """A comparison and all that came of it.

    Attributes:
        name: of the comparison.
        comparison: at its sizes.
        machine: where it was measured.
        rounds: wanted of every case.
        tables: what was measured.
        failures: a line for every task that was not.
    """

    name: str
    comparison: Comparison
    machine: Machine
    rounds: int
    tables: tuple[Table, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """A measure of a case relative to the first of its task, and what it should be at least."""

    value: float | None
    target: float | None

    @property
    def met(self) -> bool | None:
        """None where there is no target, or nothing to hold against it."""
        return None if None in (self.value, self.target) else self.value >= self.target


def ratios(table: Table, measured: Measured, row: Row) -> tuple[Ratio, Ratio]:
    """Of time and of peak memory. The targets are those of a CPU."""
    case = row.case if table.device == CPU else None
    return (
        Ratio(measured.time_ratio(row), case and case.time_target),
        Ratio(measured.peak_ratio(row), case and case.peak_target),
    )


def verdicts(results: Results) -> list[tuple[str, Ratio]]:
    """What every target is of, and whether it is met."""
    return [
        (f"{measured.task.title}: {kind} of {row.case.variant}", ratio)
        for table in results.tables
        for measured in table.tasks
        for row in measured.rows
        for kind, ratio in zip(("time", "memory"), ratios(table, measured, row), strict=True)
        if ratio.met is not None
    ]


def to_markdown(results: Results) -> str:
    """A table a device: medians of every variant, each with its ratio to the first of the task."""
    comparison = results.comparison
    sizes = ", ".join(f"{name} {value}" for name, value in comparison.sizes.items())
    versions = ", ".join(
        f"{FRAMEWORK_TITLES[framework]} {version}"
        for framework, version in results.machine.versions.items()
        if framework in comparison.frameworks
    )
    lines = [
        f"{comparison.title}: {sizes}. Medians of {results.rounds} rounds taken in turns, in "
        f"parentheses how many times ours; {versions}."
    ]
    for table in results.tables:
        place = results.machine.cpu if table.device == CPU else table.device
        variants = _variants(table)
        lines += [
            "",
            f"On {place}:",
            "",
            f"| task | measured | {' | '.join(variants)} | spread |",
            f"|---|---|{'---:|' * len(variants)}---:|",
        ]
        for measured in table.tasks:
            lines += [f"| {' | '.join(cells)} |" for cells in _lines(results, table, measured)]
    lines += [line for failure in results.failures for line in ("", f"Not measured: {failure}.")]
    return "\n".join(lines) + "\n"


def _lines(results: Results, table: Table, measured: Measured) -> list[list[str]]:
    """The cells of a task: a line of time, and one of memory where that was measured."""
    task, rounds = measured.task, len(measured.rows[0].seconds)
    times, peaks = {}, {}
    for row in measured.rows:
        images_a_second = task.sizes.get("images", 0) / row.median
        shown = images_a_second if task.shows_rate else 1000 * row.median
        of_time, of_peak = ratios(table, measured, row)
        is_first = row is measured.rows[0]
        times[row.case.variant] = _cell(_number(shown), None if is_first else of_time)
        if row.peak_bytes is not None:
            peaks[row.case.variant] = _cell(
                _megabytes(row.peak_bytes), None if is_first else of_peak
            )
    variants = _variants(table)
    title = task.title
    if rounds < results.rounds:
        title += f" ({rounds} round{'s' if rounds > 1 else ''})"
    unit = "images/s" if task.shows_rate else "time, ms"
    lines = [[title, unit, *(times.get(variant, "") for variant in variants)]]
    lines[0].append(f"{100 * measured.spread:.0f}%")
    if peaks:
        lines.append(["", "peak, MB", *(peaks.get(variant, "") for variant in variants), ""])
    return lines


def _cell(value: str, ratio: Ratio | None) -> str:
    if ratio is None or ratio.value is None:
        return value
    verdict = ""
    if ratio.target is not None:
        verdict = f"; target {ratio.target:g} {'met' if ratio.met else '**missed**'}"
    return f"{value} ({_number(ratio.value)}x{verdict})"


def _variants(table: Table) -> list[str]:
    """In the order in which they first occur."""
    return list(dict.fromkeys(row.case.variant for task in table.tasks for row in task.rows))


def to_json(results: Results) -> dict[str, Any]:
    """All that was measured; times in seconds, memory in bytes, ratios to the first of a task."""
    return {
        "comparison": results.name,
        "sizes": dict(results.comparison.sizes),
        "rounds": results.rounds,
        "cpu": results.machine.cpu,
        "versions": dict(results.machine.versions),
        "missing": results.machine.missing(results.comparison),
        "failures": list(results.failures),
        "devices": [
            {
                "device": table.device,
                "tasks": [
                    {
                        "task": measured.task.title,
                        "sizes": dict(measured.task.sizes),
                        "rows": [_row_json(table, measured, row) for row in measured.rows],
                    }
                    for measured in table.tasks
                ],
            }
            for table in results.tables
        ],
    }


def _row_json(table: Table, measured: Measured, row: Row) -> Mapping[str, Any]:
    of_time, of_peak = ratios(table, measured, row)
    images = measured.task.sizes.get("images")
    return {
        "variant": row.case.variant,
        "median_seconds": row.median,
        "images_per_second": images and images / row.median,
        "time_ratio": of_time.value,
        "time_target": of_time.target,
        "time_target_met": of_time.met,
        "peak_bytes": row.peak_bytes,
        "peak_ratio": of_peak.value,
        "peak_target": of_peak.target,
        "peak_target_met": of_peak.met,
        "difference": row.difference,
        "seconds": list(row.seconds),
        "started": list(row.started),
    }


def with_earlier(results: Results, whole: Comparison, file: Path) -> Results:
    """The results, and what `file` has of the other tasks of the whole comparison.

    Of another machine, other versions, sizes or rounds it has nothing.
    """
    now = to_json(results)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if any(before.get(key) != now[key] for key in ("cpu", "sizes", "rounds")):
        return results
    versions = before["versions"] | now["versions"]  # of some frameworks some tasks know nothing
    if versions != now["versions"] | before["versions"]:
        return results
    earlier = {
        (table["device"], task["task"]): task["rows"]
        for table in before["devices"]
        for task in table["tasks"]
    }

    def complete(table: Table) -> Table:
        measured = {each.task.title: each for each in table.tasks}
        for task in whole.tasks:
            rows = earlier.get((table.device, task.title))
            if rows and task.title not in measured:
                measured[task.title] = Measured(task, tuple(_row(task, row) for row in rows))
        titles = [task.title for task in whole.tasks if task.title in measured]
        return replace(table, tasks=tuple(measured[title] for title in titles))

    machine = replace(results.machine, versions=versions)
    tables = tuple(map(complete, results.tables))
    return replace(results, comparison=whole, machine=machine, tables=tables)


def _row(task: Task, row: Mapping[str, Any]) -> Row:
    """What `_row_json` wrote."""
    return Row(
        case=task.case(row["variant"]),
        seconds=tuple(row["seconds"]),
        started=tuple(row["started"]),
        peak_bytes=row["peak_bytes"],
        difference=row["difference"],
    )


def write_chart(path: Path, results: Results) -> bool:
    """Bars of how many times ours the others take, in time and in memory; a black tick is a target.

    Returns:
        Whether there was anything to compare, and so a chart was written.
    """
    panels = [
        (table, index, f"{kind}, times ours ({table.device})")
        for table in results.tables
        for index, kind in enumerate(("time", "peak memory"))
        if _bars_of(table, index)
    ]
    if not panels:
        return False
    # Here, for every worker process imports what the command does.
    import matplotlib
    from matplotlib.figure import Figure

    heights = [len(_bars_of(table, index)) + 2 for table, index, _ in panels]
    with matplotlib.rc_context(_STYLE):
        size = (8, 0.8 + 0.24 * sum(heights))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(results.comparison.title, fontsize=10)
        for ax, (table, index, title) in zip(axes, panels, strict=True):
            _draw_bars(ax, _bars_of(table, index), _variants(table), title)
        with written_whole(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
    return True


def _bars_of(table: Table, index: int) -> list[tuple[str, str, Ratio]]:
    """(task, variant, ratio) of all but the first of a task; `index` 0 of time, 1 of memory."""
    bars = [
        (measured.task.title, row.case.variant, ratios(table, measured, row)[index])
        for measured in table.tasks
        for row in measured.rows[1:]
    ]
    return [bar for bar in bars if bar[2].value]


def _draw_bars(
    ax: Any, bars: Sequence[tuple[str, str, Ratio]], variants: Sequence[str], title: str
) -> None:
    colours = dict(zip(variants[1:], _COLOURS * len(variants), strict=False))
    tasks = list(dict.fromkeys(task for task, _, _ in bars))
    places = [index + _GAP * tasks.index(task) for index, (task, _, _) in enumerate(bars)]
    labelled: set[str] = set()
    for place, (_, variant, ratio) in zip(places, bars, strict=True):
        label = None if variant in labelled else variant
        labelled.add(variant)
        ax.barh(place, ratio.value - 1, left=1, color=colours[variant], label=label)
        ax.annotate(
            f"{_number(ratio.value)}x",
            (max(ratio.value, 1), place),
            (3, 0),
            textcoords="offset points",
            va="center",
        )
        if ratio.target:
            ax.plot([ratio.target] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    known = [1, *(value for _, _, ratio in bars for value in (ratio.value, ratio.target or 1))]
    low, high = 0.9 * min(known), 1.6 * max(known)  # with room for the labels
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = (digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5))
    ticks = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.axvline(1, color="#666666", linewidth=0.8)
    # A task is named once, beside the first of its bars.
    firsts = [places[[name for name, _, _ in bars].index(task)] for task in tasks]
    ax.set_yticks(firsts, tasks)
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, fontsize=9, loc="left")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def mark_of(name: str) -> str:
    """How the place of a comparison's table is marked in a page."""
    return f"benchmark: {name}"


def update_table(path: Path, name: str, text: str, chart: Path | None) -> None:
    """Puts `text`, and below it the chart, where there is one, into its place in a page.

    Raises:
        UsageError: there is no such file, or not exactly one such place in it.
    """
    text = text.strip()
    if chart:
        text += f"\n\n![{name}]({Path(os.path.relpath(chart, path.parent)).as_posix()})"
    update_page(path, mark_of(name), f"{text}\n")


def _megabytes(count: int) -> str:
    megabytes = count / MEGABYTE
    return f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"


def _number(value: float) -> str:
    """Three digits are as many as a timing has."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")

"""A measurement for people and programs: Markdown, JSON, a chart, and a place in the README."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Comparison
from measure import Machine, Row, Table

from mlic_jax.atomic import write_text, written_whole
from mlic_jax.errors import UsageError

MEGABYTE = 2**20  # as in the column heads of every tool that shows a process's memory

_OURS, _OTHER = "#0072b2", "#b8bcc2"
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlic_jax",  # the same chart is the same bytes
}


def to_markdown(
    comparison: Comparison, machine: Machine, tables: Sequence[Table], rounds: int
) -> str:
    """A table a device: medians, their range, and both measures relative to the first of a task."""
    sizes = ", ".join(f"{name} {value}" for name, value in comparison.sizes.items())
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [f"{comparison.title}: {sizes}. Medians of {rounds} rounds taken in turns; {versions}."]
    for table in tables:
        place = machine.cpu if table.device == "CPU" else table.device
        lines += [
            "",
            f"On {place}:",
            "",
            "| task | variant | time, ms | range | times ours | peak memory, MB | times ours |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for row in table.rows:
            ratios = relative_to_first(row, table)
            low, high = _milliseconds(min(row.seconds)), _milliseconds(max(row.seconds))
            task = row.task if table.first_of(row) is row else ""
            cells = (
                task,
                row.variant,
                _milliseconds(row.median),
                f"{low} to {high}",
                _ratio(ratios["time"]),
                _megabytes(row.peak_bytes),
                _ratio(ratios["peak"]),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_json(
    name: str, comparison: Comparison, machine: Machine, tables: Sequence[Table], rounds: int
) -> dict[str, Any]:
    """All that was measured; times in seconds, memory in bytes."""
    return {
        "comparison": name,
        "sizes": dict(comparison.sizes),
        "rounds": rounds,
        "cpu": machine.cpu,
        "versions": dict(machine.versions),
        "missing": list(machine.missing),
        "devices": [
            {
                "device": table.device,
                "rows": [
                    {
                        "task": row.task,
                        "variant": row.variant,
                        "median_seconds": row.median,
                        "seconds": list(row.seconds),
                        "started": list(row.started),
                        "time_ratio": relative_to_first(row, table)["time"],
                        "peak_bytes": row.peak_bytes,
                        "peak_ratio": relative_to_first(row, table)["peak"],
                        "difference": row.difference,
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
    }


def relative_to_first(row: Row, table: Table) -> Mapping[str, float | None]:
    """The median time and the peak memory of a row by those of the first of its task."""
    first = table.first_of(row)
    known = row.peak_bytes is not None and first.peak_bytes
    return {
        "time": row.median / first.median,
        "peak": row.peak_bytes / first.peak_bytes if known else None,
    }


def write_chart(path: Path, comparison: Comparison, tables: Sequence[Table]) -> None:
    """Bars of time, and of memory where it was measured, a line of panels a device.

    Raises:
        UsageError: the suffix of the path is neither .svg nor .png.
    """
    # Here, for every worker process imports what the command does.
    import matplotlib
    from matplotlib.figure import Figure

    check_chart(path)
    memory = any(row.peak_bytes is not None for table in tables for row in table.rows)
    columns, tallest = 1 + memory, max(len(table.rows) for table in tables)
    with matplotlib.rc_context(_STYLE):
        size = (1.5 + 4 * columns, (0.6 + 0.27 * (tallest + 2)) * len(tables))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.subplots(len(tables), columns, squeeze=False, sharey="row")
        figure.suptitle(comparison.title, fontsize=10)
        for line, table in zip(axes, tables, strict=True):
            times = [1000 * row.median for row in table.rows]
            _bars(line[0], table, times, f"time, ms ({table.device})")
            if memory:
                peaks = [(row.peak_bytes or 0) / MEGABYTE for row in table.rows]
                _bars(line[1], table, peaks, f"peak memory, MB ({table.device})")
        with written_whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=_metadata(path))


def check_chart(path: Path) -> None:
    """Raises UsageError unless a chart can be written under such a name."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--chart is {path}; its name must end in .svg or .png")


def update_readme(path: Path, name: str, text: str) -> None:
    """Puts `text` between the lines `<!-- benchmark: NAME -->` and `<!-- end -->` of a file.

    Raises:
        UsageError: there is no such file, or not exactly one such place in it.
    """
    before, after = split_readme(path, name)
    write_text(path, f"{before}{text.strip()}\n{after}")


def split_readme(path: Path, name: str) -> tuple[str, str]:
    """A file up to where the table of a comparison stands, and from its end on.

    Raises UsageError as `update_readme`.
    """
    begin, end = f"<!-- benchmark: {name} -->\n", "<!-- end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    before, _, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed or begin in rest:
        raise UsageError(f"{path} must have one line {begin.strip()} and a line {end} after it")
    return before + begin, end + after


def _bars(axes: Any, table: Table, values: Sequence[float], title: str) -> None:
    places = range(len(values))
    colours = [_OURS if table.first_of(row) is row else _OTHER for row in table.rows]
    bars = axes.barh(places, values, color=colours)
    axes.bar_label(bars, [_number(value) for value in values], padding=2)
    axes.set_yticks(places, [f"{row.task}: {row.variant}" for row in table.rows])
    axes.set_xlim(0, 1.2 * max(values) or 1)  # room for the labels
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if not axes.yaxis_inverted():  # the first case on top; the panels share the axis
        axes.invert_yaxis()


def _metadata(path: Path) -> dict[str, None] | None:
    return {"Date": None} if path.suffix == ".svg" else None


def _milliseconds(seconds: float) -> str:
    return _number(1000 * seconds)


def _megabytes(count: int | None) -> str:
    if count is None:
        return ""
    megabytes = count / MEGABYTE
    return f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else _number(value)


def _number(value: float) -> str:
    """Three digits are as many as a timing has."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")

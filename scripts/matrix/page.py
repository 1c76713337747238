"""The page of a matrix and its picture, from the JSON that `results.py` makes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from mlic_jax.metrics.localisation import MEASURES
from mlic_jax.reports.page import page_template

TEMPLATE = Path(__file__).with_name("page.html.jinja")
ROW = 0.26  # inches, of a method in a picture


def render(content: Mapping[str, Any]) -> str:
    """The page, self-contained."""
    template = page_template(
        TEMPLATE, {"ordered": _ordered, "mean_seconds": _mean_seconds, "looking": _looking}
    )
    over_sets = content["over_sets"]
    return template.render(
        **content,
        intervals={of["set"]: _inline(draw_intervals(of)) for of in content["sets"] if _good(of)},
        ranks=over_sets and _inline(draw_ranks(over_sets)),
    )


def to_markdown(content: Mapping[str, Any]) -> str:
    """A table of all methods on all sets, the best mean first."""
    sets, over_sets = content["sets"], content["over_sets"]
    names = dict.fromkeys(method for of in sets for method in of["methods"])
    ranks = over_sets["ranks"] if over_sets else {}

    def worth(method: str) -> float:
        known = [of["methods"].get(method, {}).get("mAP") for of in sets]
        return sum(value or 0.0 for value in known)

    heads = [f"{of['set']} ({of.get('images', 0)} images)" for of in sets]
    heads += ["mean rank"] if ranks else []
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method in sorted(names, key=worth, reverse=True):
        cells = [_cell(of["methods"].get(method)) for of in sets]
        if ranks:
            cells.append(f"{ranks[method]:.1f}" if method in ranks else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    baseline = sets[0]["baseline"]
    lines += ["", f"Differences are to `{baseline}`; of those with a star p is below 0.05."]
    for of in sets:
        if rows := _looking(of["methods"]):
            heads = [f"{measure}, %" for measure in MEASURES]
            lines += [
                "",
                f"| where it looks, {of['set']} | {' | '.join(heads)} |",
                "|---|---|---|---|",
            ]
            lines += [f"| {name} | {' | '.join(figures)} |" for name, figures in rows]
    return "\n".join(lines) + "\n"


def _looking(of_methods: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Of each method that has regions its name and a text a measure; empty where none has.

    In brackets what a region of the same size is worth at random, and in the middle.
    """
    return [
        (method, [_looked(values["localisation"].get(measure)) for measure in MEASURES])
        for method, values in _ordered(of_methods)
        if "localisation" in values
    ]


def _looked(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['model']:.1f} ({found['random']:.1f}, {found['central']:.1f})"


def _cell(values: Mapping[str, Any] | None) -> str:
    """The mAP, its interval, the difference to the baseline; a star where that is no chance."""
    if values is None:
        return ""
    if values["mAP"] is None:
        return "failed"
    low, high = values["interval"]
    text = f"{values['mAP']:.1f} ({low:.1f} to {high:.1f}){said_of_runs(values)}"
    if "difference" in values:
        text += f", {values['difference']:+.1f}{'*' if values['holm'] < 0.05 else ''}"
    return text


def _good(of_set: Mapping[str, Any]) -> dict[str, Any]:
    return {m: v for m, v in of_set["methods"].items() if v["mAP"] is not None}


def _ordered(methods: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The best first, what failed last."""
    return sorted(methods.items(), key=lambda item: -(item[1]["mAP"] or 0.0))


def said_of_runs(values: Mapping[str, Any]) -> str:
    """How many of a method's runs its figures are of, where that is not all of them."""
    good, all_of_them = len(values["runs"]), len(values["cells"])
    return f" of {good} of {all_of_them} runs" if good < all_of_them else ""


def _mean_seconds(cells: Sequence[Mapping[str, Any]]) -> str:
    """Of the runs that were not killed on the way."""
    known = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    return f"{sum(known) / len(known):.0f}" if known else "n/a"


def draw_intervals(of_set: Mapping[str, Any]) -> Figure:
    """A dot and an interval a method, the best on top; the line is the baseline."""
    rows = _ordered(_good(of_set))
    figure = Figure(figsize=(8, 0.9 + ROW * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, values) in enumerate(rows):
        low, high = values["interval"]
        axes.plot([low, high], [y, y], color="#56789a", lw=2)
        axes.plot(values["runs"], [y] * len(values["runs"]), "|", color="#56789a", ms=7)
        axes.plot(values["mAP"], y, "o", color="#1f5fa8", ms=5)
    if baseline := _good(of_set).get(of_set["baseline"]):
        axes.axvline(baseline["mAP"], color="#999", lw=1, ls=":")
    axes.set_yticks(range(len(rows)), [method for method, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"mAP on {of_set['set']} {of_set['split']} (%)", ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="x", color="#ddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def draw_ranks(over_sets: Mapping[str, Any]) -> Figure:
    """Mean ranks, the best on top, each with half the critical difference to either side.

    Two whose bars do not meet are told apart.
    """
    rows = sorted(over_sets["ranks"].items(), key=lambda item: item[1])
    half = over_sets["critical_difference"] / 2
    figure = Figure(figsize=(8, 0.9 + ROW * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, rank) in enumerate(rows):
        axes.plot([rank - half, rank + half], [y, y], color="#56789a", lw=2)
        axes.plot(rank, y, "o", color="#1f5fa8", ms=5)
        axes.annotate(f"{rank:.1f}", (rank, y), (0, 4), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(rows)), [method for method, _ in rows])
    axes.set(xlabel="mean rank (1 is the best)", ylim=(len(rows) - 0.4, -0.8))
    axes.grid(axis="x", color="#ddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _inline(figure: Figure) -> Markup:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])

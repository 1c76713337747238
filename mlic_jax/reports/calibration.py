"""What an operating point changes, as text and as a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mlic_jax.files.atomic import write_text, written_whole
from mlic_jax.metrics.operating_point import (
    BINS,
    TEMPERATURES,
    OperatingPoint,
    measure,
    reliability,
    sweep,
)
from mlic_jax.metrics.precision_recall import sigmoid
from mlic_jax.scores.files import Scores

FEW = 5  # positives, of which a threshold says little
_BEFORE, _AFTER, _LINE = "#d55e00", "#0072b2", "#888888"


def summary(point: OperatingPoint, classes: Sequence[Mapping[str, Any]] = ()) -> str:
    """A few lines: what was learned, and on what.

    With the `classes` of `measure` also which of them have no threshold of their own, or one that
    says little.
    """
    lines = [
        f"learned on {point.set_name} {point.split}, {point.images} images: {point.rule}",
        f"  temperature {point.temperature:.4g}: expected calibration error "
        f"{point.error_before:.2f} before, {point.error_after:.2f} after",
    ]
    if point.error_after > point.error_before:
        lines[-1] += (
            " (it is what makes the labels likeliest; of few images this error says little)"
        )
    if point.temperature in TEMPERATURES:
        lines[-1] += " (the end of the range: too few or too easy images to tell)"
    distinct = sorted(set(point.thresholds))
    several = f" to {distinct[-1]:.4f}" if len(distinct) > 1 else ""
    lines.append(f"  threshold {distinct[0]:.4f}{several}")
    if others := [row for row in classes if row["fallback"]]:
        lines.append(
            f"  the one threshold, {others[0]['threshold']:.4f}, for want of positives or of one "
            f"that reaches the target: {', '.join(row['name'] for row in others)}"
        )
    few = [row for row in classes if row["positives"] < FEW and not row["fallback"]]
    if few and several:
        named = ", ".join(f"{row['name']} ({row['positives']})" for row in few)
        lines.append(
            f"  by fewer than {FEW} positives, and so perhaps not for other photos (the rule `one` "
            f"learns from all classes together): {named}"
        )
    return "\n".join(lines)


def figures_text(values: Mapping[str, Any], name: str) -> str:
    """The figures of `measure` before and after, a line each."""
    lines = [f"{name}, known labels alone:"]
    for key, what in (("at_half", "at 0.5"), ("at_operating_point", "at the operating point")):
        names = ("OP", "OR", "OF1", "CP", "CR", "CF1")
        figures = "  ".join(f"{figure} {values[key][figure]:.1f}" for figure in names)
        error = values[key]["expected_calibration_error"]
        lines.append(f"  {what + ':':<24}{figures}  calibration error {error:.2f}")
    return "\n".join(lines)


def class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The classes of `measure`, a line each; a star marks a fallback."""
    width = max(len("class"), *(len(row["name"]) for row in classes))
    lines = [f"{'class':<{width}}  threshold  positives  precision  recall     F1"]
    for row in classes:
        precision, recall, f1 = (
            "n/a" if row[key] is None else f"{row[key]:.1f}"
            for key in ("precision", "recall", "F1")
        )
        star = "*" if row["fallback"] else " "
        lines.append(
            f"{row['name']:<{width}}  {row['threshold']:>8.4f}{star}  {row['positives']:>9}  "
            f"{precision:>9}  {recall:>6}  {f1:>5}"
        )
    return "\n".join(lines)


def write_results(folder: Path, scores: Scores, point: OperatingPoint) -> dict[str, Any]:
    """Writes `calibration_<split>.json` and `.png` of the split it was learned on.

    Returns:
        What `measure` says.
    """
    values = measure(scores, point)
    written = {"operating_point": point.to_dict(), **values}
    path = Path(folder) / f"calibration_{scores.split}.json"
    write_text(path, json.dumps(written, indent=1, allow_nan=False))
    with written_whole(path.with_suffix(".png")) as partial:
        draw(scores, point, values["classes"]).savefig(partial, format="png", dpi=120)
    return values


def draw(scores: Scores, point: OperatingPoint, classes: Sequence[Mapping[str, Any]]) -> Figure:
    """The reliability diagram before and after, and F1 against the threshold.

    Args:
        scores: of the split it was learned on.
        point: what was learned.
        classes: of `measure`.
    """
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram = figure.add_subplot(grid[0, 0])
    _draw_reliability(diagram, figure.add_subplot(grid[1, 0], sharex=diagram), scores, point)
    _draw_f1(figure.add_subplot(grid[:, 1]), scores, point, classes)
    title = f"{point.set_name} {point.split}, {point.images} images: {point.rule}"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_reliability(
    diagram: Axes, histogram: Axes, scores: Scores, point: OperatingPoint
) -> None:
    diagram.plot((0, 1), (0, 1), color=_LINE, linewidth=1, linestyle="--")
    for shift, what, colour, error, probabilities in (
        (0.0, "before", _BEFORE, point.error_before, sigmoid(scores.logits)),
        (0.5, "after", _AFTER, point.error_after, point.probabilities(scores.logits)),
    ):
        entries, promised, present = reliability(probabilities, scores.labels)
        label = f"{what}: expected error {error:.2f} %"
        diagram.plot(
            promised, present, color=colour, marker="o", markersize=4, linewidth=1.5, label=label
        )
        left = (np.arange(BINS) + shift) / BINS
        histogram.bar(left, entries, width=0.5 / BINS, align="edge", color=colour)
    diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is present")
    diagram.legend(loc="upper left", frameon=False)
    histogram.set(yscale="log", xlabel="probability", ylabel="labels")
    histogram.set_ylim(bottom=0.8)
    histogram.yaxis.set_minor_formatter(NullFormatter())


def _draw_f1(
    axes: Axes, scores: Scores, point: OperatingPoint, classes: Sequence[Mapping[str, Any]]
) -> None:
    curve = sweep(point.probabilities(scores.logits), scores.labels)
    # A long curve is thinned evenly along its thresholds.
    kept = np.searchsorted(-curve.thresholds, np.linspace(-1, 0, 1000))
    kept = np.unique(np.minimum(kept, len(curve.thresholds) - 1))
    axes.plot(
        curve.thresholds[kept],
        100 * curve.f1[kept],
        color=_AFTER,
        linewidth=1.5,
        label="one threshold: overall F1",
    )
    if len(set(point.thresholds)) == 1:
        label = f"chosen: {point.thresholds[0]:.3f}"
        axes.axvline(point.thresholds[0], color=_BEFORE, linewidth=1.5, label=label)
    else:
        rows = [row for row in classes if row["F1"] is not None]
        thresholds, of_class = ([row[key] for row in rows] for key in ("threshold", "F1"))
        axes.scatter(thresholds, of_class, s=14, color=_BEFORE, label="a class at its threshold")
    axes.set(
        xlim=(0, 1), ylim=(0, 102), xlabel="threshold of the calibrated probability", ylabel="F1, %"
    )
    axes.legend(loc="lower center", framealpha=1)

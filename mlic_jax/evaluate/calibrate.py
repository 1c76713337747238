"""Learns operating points, measures and draws them; see `operating_point.py` for what they are.

`--mode calibrate --workdir RUN` of mlic_jax.main stores one in the run's checkpoint; the same is
learned from a score file, and measured on another one, by

    python -m mlic_jax.calibrate scores_val.npz --rule per_class --apply scores_test.npz
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from ml_collections import ConfigDict

from mlic_jax.checkpoint_config import as_predicted
from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import sources
from mlic_jax.errors import UsageError
from mlic_jax.evaluate.run import load_model, score_model
from mlic_jax.files.atomic import write_text, written_whole
from mlic_jax.metrics.classification import (
    class_precision_recall_f1,
    count,
    precision_recall_f1,
    sigmoid,
)
from mlic_jax.metrics.operating_point import (
    BINS,
    RULES,
    TEMPERATURES,
    OperatingPoint,
    expected_calibration_error,
    learn_operating_point,
    reliability,
    rule_text,
    sweep,
)
from mlic_jax.runtime.checkpoint import find_checkpoint, update_metadata
from mlic_jax.scores.files import Scores
from mlic_jax.train.resume import describe

_BEFORE, _AFTER, _LINE = "#d55e00", "#0072b2", "#888888"


def measure(scores: Scores, point: OperatingPoint) -> dict[str, Any]:
    """Figures of a split at an operating point, and at probability 0.5 of the logits as they are.

    Returns:
        `at_half` and `at_operating_point`: `OP OR OF1 CP CR CF1 CF1_macro` and
        `expected_calibration_error`, all in percent. `classes`: for each its name, threshold,
        whether that is a fallback, positives, and precision, recall and F1 there (None without
        positives).
    """
    figures = {}
    for name, probabilities, thresholds in (
        ("at_half", sigmoid(scores.logits), 0.5),
        ("at_operating_point", point.probabilities(scores.logits), np.array(point.thresholds)),
    ):
        counts = count(probabilities >= thresholds, scores.labels)
        error = expected_calibration_error(probabilities, scores.labels)
        figures[name] = precision_recall_f1(counts) | {"expected_calibration_error": error}
    rows = zip(
        map(str, scores.class_names),
        point.thresholds,
        counts.positives.tolist(),
        *(100 * values for values in class_precision_recall_f1(counts)),
        strict=True,
    )
    figures["classes"] = [
        {
            "name": name,
            "threshold": threshold,
            "fallback": name in point.fallback,
            "positives": positives,
            "precision": None if math.isnan(precision) else float(precision),
            "recall": None if math.isnan(recall) else float(recall),
            "F1": None if math.isnan(f1) else float(f1),
        }
        for name, threshold, positives, precision, recall, f1 in rows
    ]
    return figures


def summary(point: OperatingPoint) -> str:
    """A few lines: what was learned, and on what."""
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
    if point.fallback:
        lines.append(
            f"  {len(point.fallback)} classes have the one threshold, for want of positives or of "
            f"a threshold that reaches the target: {', '.join(point.fallback)}"
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


# --- commands


def calibrate_run(
    config: ConfigDict, workdir: Path, checkpoint: Path | str | None = None
) -> OperatingPoint:
    """Learns the operating point of a checkpoint and stores it in its metadata.

    The checkpoint is by default the best of the run in `workdir`. Its scores of the split in the
    role `config.calibration.split`, `calibration_<split>.json` and `.png` are written to `workdir`.
    Where prediction would look with other options than `config` has, nothing is stored, and that is
    printed: its labels would not be those of the operating point.

    Raises:
        UsageError: there is no checkpoint or it is of another model, the rule or its target is
            wrong, or the split is also the test split and `config.calibration.allow_test` is not
            set.
        Failure: see `learn_operating_point`.
    """
    options, target = config.calibration, config.calibration.target or None
    rule_text(options.rule, target)  # before the minutes of scoring
    on_test = _is_test_split(config)
    if on_test and not options.allow_test:
        split = config.data.splits[options.split]
        raise UsageError(
            f"calibration.split={options.split} is the split {split!r}, on which the results are "
            "reported: choose another one, or say --config.calibration.allow_test=True and have it "
            "named"
        )
    path = find_checkpoint(checkpoint or workdir)
    split = sources.open_splits(config.data)[options.split]
    model, variables, metadata = load_model(config, path, split)
    others = as_predicted(metadata, config, path)
    scores = score_model(model, variables, split, config)
    point = learn_operating_point(scores, options.rule, target, on_test=on_test)
    if jax.process_index() == 0:
        workdir = Path(workdir)
        scores.save(workdir / f"scores_{scores.split}.npz")
        values = write_results(workdir, scores, point)
        stored = f"not stored in {path}, for prediction looks with {describe(others)}"
        if not others:
            update_metadata(path, {"operating_point": point.to_dict()})
            stored = f"stored in {path}"
            if earlier := metadata.get("operating_point"):
                before = OperatingPoint.from_dict(earlier)
                stored += f", in place of: {before.rule} (of {before.set_name} {before.split})"
        print(summary(point))
        print(figures_text(values, "on the images that it was learned from"))
        print(f"{stored}; see also {workdir}/calibration_{scores.split}.json and .png")
    return point


def _is_test_split(config: ConfigDict) -> bool:
    role, splits = config.calibration.split, config.data.splits
    if role not in splits or not splits[role]:
        raise UsageError(f"calibration.split is {role!r}; data.splits has {', '.join(splits)}")
    return splits[role] == splits.get("test")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = Parser(
        prog="python -m mlic_jax.calibrate",
        description="Learns an operating point from a score file of a validation split.",
    )
    parser.add_argument("scores", type=Path, help="a score file, scores_<split>.npz")
    parser.add_argument("--rule", default="one", help="; ".join(f"{r}: {t}" for r, t in _rules()))
    parser.add_argument("--target", type=float, help="for precision and recall, such as 0.9")
    parser.add_argument("--apply", type=Path, metavar="SCORES", help="measure it on this file too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write JSON and a picture")
    parser.add_argument(
        "--allow-test", action="store_true", help="learn on the split that results are reported on"
    )

    def run() -> None:
        options = parser.parse_args(arguments)
        scores = Scores.load(options.scores)
        applied = Scores.load(options.apply) if options.apply else None
        on_test = scores.split == "test"
        if applied is not None:
            if list(applied.class_names) != list(scores.class_names):
                raise UsageError(f"{options.apply} has other classes than {options.scores}")
            same = (applied.set_name, applied.split) == (scores.set_name, scores.split)
            on_test = on_test or same
        if on_test and not options.allow_test:
            raise UsageError(
                f"{options.scores} is of the split that results are reported on: learn from "
                "another one, or say --allow-test and have it named"
            )
        point = learn_operating_point(scores, options.rule, options.target, on_test=on_test)
        values = measure(scores, point)
        print(summary(point))
        print(class_table(values["classes"]))
        print(figures_text(values, f"{scores.set_name} {scores.split}, learned from"))
        if applied is not None:
            name = f"{applied.set_name} {applied.split}, {len(applied.logits)} images"
            print(figures_text(measure(applied, point), name))
        if options.output:
            write_results(options.output, scores, point)

    return exit_code(run)


def _rules() -> list[tuple[str, str]]:
    return [(rule, text.replace("{target:g}", "TARGET")) for rule, text in RULES.items()]

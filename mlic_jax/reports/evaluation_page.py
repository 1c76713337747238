"""Pictures for people: one HTML page with the metrics, the curves and a gallery of regions.

The page is a single file that loads nothing: styles are inline, charts are SVG drawn by matplotlib,
photographs are data URIs. `evaluation_page.html.jinja` holds the words and the looks, this module
the numbers. The charts are drawn in placeholder colours which become the page's CSS variables, so
that they follow its light and dark themes.
"""

import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.classification import (
    average_precision,
    mean_average_precision,
    precision_recall_curve,
    predicted_labels,
    sigmoid,
)
from mlic_jax.metrics.ties import said_of_ties
from mlic_jax.reports.label_graph import LabelGraph, describe
from mlic_jax.reports.page import LEAST_GLOBAL, REGION_COLOURS, data_uri, is_drawn, page_template
from mlic_jax.scores.files import Scores

GALLERY_SIZE = 24
CHART_COLUMNS = 4  # of the chart of every class, on a wide screen


# CSS variable -> the colour that stands for it while matplotlib draws.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_FINAL, _GLOBAL, _THIRD, _CARD = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    "ink": _INK,
    "muted": _MUTED,
    "line": _LINE,
    "final": _FINAL,
    "global": _GLOBAL,
    "third": _THIRD,
    "card": _CARD,
}
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",  # text stays text: selectable, and in the font of the page
    "svg.hashsalt": "mlic_jax",  # the same chart is the same bytes
    "text.color": _INK,
    "text.parse_math": False,  # a class may be called "$"
    "xtick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.color": _MUTED,
    "ytick.major.size": 0,
}

_PAGE = Path(__file__).with_name("evaluation_page.html.jinja")
_FILTERS = {
    "percent": lambda v: "n/a" if v is None or np.isnan(v) else f"{v:.1f}",
    "signed": lambda v: f"{v:+.1f}",
    "probability": lambda v: f"{v:.2f}",
    "thousands": lambda v: f"{v:,}",
}


def write_report(
    workdir: Path,
    scores: Scores,
    metrics: Mapping[str, Any],
    image_at: Callable[[int], np.ndarray],
    *,
    title: str,
    summary: Mapping[str, object] | None = None,
    train_log: Path | None = None,
    objects_at: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    label_graph: LabelGraph | None = None,
) -> Path:
    """Writes `workdir/report/index.html`; an earlier page stays until the new one is complete.

    Args:
        workdir: the run's folder.
        scores: of a split of N images.
        metrics: what `mlic_jax.metrics.evaluate_scores` made of `scores.logits`.
        image_at: image i of the split as the model sees it before normalisation, uint8 [S, S, 3]
            with S = `scores.image_size`; called for the images of the gallery alone.
        title: the heading, such as the name of the configuration.
        summary: what else to know about the run, a line each, such as the backbone.
        train_log: `metrics.jsonl` of the training run; curves are left out where there is none.
        objects_at: the true boxes of image i, [K, 4] (y1, x1, y2, x2) in pixels of `image_at(i)`,
            upper bounds exclusive, and their classes [K].
        label_graph: of a model that has one, of the classes of `scores`.

    Returns:
        The path of the page.
    """
    ap_labels = resolve_unknown(scores.labels, metrics["unknown_in_ap"])
    ap = {
        name: average_precision(logits, ap_labels, metrics["ap_kind"], metrics["ties"])
        for name, logits in scores.streams.items()
    }
    log = read_train_log(train_log)
    predicted = predicted_labels(scores.logits, metrics["threshold"])
    with matplotlib.rc_context(_STYLE):
        class_charts = draw_average_precision(scores.class_names, ap["final"], ap.get("global"))
        curves = [draw_precision_recall(scores, ap_labels, ap["final"], metrics)]
        if "loss" in log:
            curves.append(draw_loss(*log["loss"]))
        if "val/mAP" in log:
            curves.append(draw_validation(log, metrics["chance"]))
    page = page_template(_PAGE, _FILTERS).render(
        title=title,
        summary=summary or {},
        scores=scores,
        metrics=metrics,
        tied=said_of_ties(metrics),
        stream_map={stream: mean_average_precision(values) for stream, values in ap.items()},
        class_rows=_class_rows(scores.class_names, ap, metrics["positives"]),
        class_charts=class_charts,
        label_graph=label_graph and describe(label_graph, scores.class_names),
        group_colours=REGION_COLOURS,
        f1_columns=("CP", "CR", "CF1", "CF1_macro", "OP", "OR", "OF1"),
        curves=curves,
        has_log=bool(log),
        gallery=[
            (heading, [_picture(scores, predicted, int(i), image_at, objects_at) for i in chosen])
            for heading, chosen in choose_images(scores)
        ],
        has_objects=objects_at is not None,
        least_global=LEAST_GLOBAL,
        region_colours=[_region_colour(k) for k in range(_count_regions(scores))],
    )
    path = Path(workdir) / "report" / "index.html"
    write_text(path, page)
    return path


def read_train_log(path: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves of a `metrics.jsonl`: name -> (steps, values), float64, in the order of the file.

    Lenient, for a run may have been killed while it wrote: what is not a JSON object with a step,
    and what is not a finite number, is passed over. A missing file has no curves.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    if path is None or not Path(path).is_file():
        return {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not _is_number(entry.get("step")):
            continue
        for name, value in entry.items():
            if _is_number(value):
                curves.setdefault(name, []).append((entry["step"], value))
    return {name: tuple(np.array(points, np.float64).T) for name, points in curves.items()}


def choose_images(scores: Scores) -> list[tuple[str, np.ndarray]]:
    """Which images the gallery shows: (heading, indices) of up to `GALLERY_SIZE`, no image twice.

    A third those with the lowest loss, a third those with the highest, both among the images with
    a present label (an empty image is easy and shows nothing), and the rest a fixed random sample.
    The loss is the binary cross-entropy of the final logits, the mean over the known labels.
    """
    known = scores.labels != 0
    loss = np.logaddexp(0, -scores.labels * scores.logits.astype(np.float64))
    loss = (loss * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    ranked = np.flatnonzero((scores.labels > 0).any(axis=1))
    ranked = ranked[np.argsort(loss[ranked], kind="stable")]
    share = min(GALLERY_SIZE, len(ranked)) // 3
    best, worst = ranked[:share], ranked[::-1][:share]
    others = np.setdiff1d(np.arange(len(loss)), np.concatenate([best, worst]))
    sample = np.random.default_rng(0).permutation(others)[: GALLERY_SIZE - 2 * share]
    groups = (("Lowest loss", best), ("Highest loss", worst), ("At random", np.sort(sample)))
    return [(heading, chosen) for heading, chosen in groups if len(chosen)]


# --- charts


def draw_average_precision(
    names: Sequence[str], final: np.ndarray, global_stream: np.ndarray | None = None
) -> list[Markup]:
    """AP [C] of each class, highest first: bars for the final scores, rings for the global stream.

    In several charts, which a wide screen sets beside one another and a phone one below the other.
    """
    ranked = np.argsort(-final, kind="stable")  # NaN, the classes without positives, come last
    ranked = ranked[: np.count_nonzero(~np.isnan(final))]
    rows = max(5, -(-len(ranked) // CHART_COLUMNS))
    charts = []
    for start in range(0, len(ranked), rows):
        classes = ranked[start : start + rows]
        height = 0.21 * rows + 0.3  # of a full chart, so that the bars of all are equally thick
        figure = Figure(figsize=(3.4, height))
        axes = figure.add_axes((0.4, 0.25 / height, 0.45, 1 - 0.3 / height))
        y = np.arange(len(classes))
        axes.barh(y, final[classes], height=0.62, color=_FINAL)
        if global_stream is not None:
            rings = {"ms": 5, "mew": 1.8, "mfc": _CARD, "mec": _GLOBAL, "clip_on": False}
            axes.plot(global_stream[classes], y, "o", **rings)
        for row, c in enumerate(classes):
            axes.text(131, row, f"{final[c]:.1f}", ha="right", va="center")
        axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.6), xticks=(0, 50, 100))
        axes.set_yticks(y, [_shortened(names[c], 18) for c in classes], color=_INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        last = start + len(classes)
        alt = f"Average precision of the classes ranked {start + 1} to {last}; table below."
        charts.append(_svg(figure, f"ap{start}", alt))
    return charts


def draw_precision_recall(
    scores: Scores, labels: np.ndarray, ap: np.ndarray, metrics: Mapping[str, Any]
) -> Markup:
    """Curves over all labels at once and of the best, the median and the worst class."""
    figure, axes = _curve_axes("Precision and recall", "recall", "precision", legend_rows=5)
    ranked = np.argsort(-ap, kind="stable")[: np.count_nonzero(~np.isnan(ap))]
    # Keyed by class, so that of fewer than three classes none is drawn twice.
    chosen = {ranked[-1]: "worst", ranked[len(ranked) // 2]: "median", ranked[0]: "best"}
    styles = {
        "best": (_FINAL, "-"),
        "median": (_THIRD, (0, (5, 2))),
        "worst": (_GLOBAL, (0, (1.5, 1.5))),
    }
    for c, word in reversed(chosen.items()):
        colour, dashes = styles[word]
        label = f"{word}: {_shortened(scores.class_names[c], 20)}, AP {ap[c]:.1f}"
        recall, precision = _curve(scores.logits[:, c], labels[:, c])
        axes.plot(recall, precision, color=colour, ls=dashes, lw=1.5, label=label)
    recall, precision = _curve(scores.logits, labels)
    axes.plot(recall, precision, color=_INK, lw=2.2, label="all labels together")
    label = f"at the threshold {metrics['threshold']:g}"
    axes.plot(metrics["OR"] / 100, metrics["OP"] / 100, "D", ms=7, color=_INK, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend_below(axes)
    return _svg(figure, "pr", "Precision-recall curves of all labels and of three classes.")


def draw_loss(steps: np.ndarray, loss: np.ndarray) -> Markup:
    """The training loss, and its running mean over a thirtieth of the run."""
    figure, axes = _curve_axes("Training loss", "step", "loss", legend_rows=2)
    axes.plot(steps, loss, color=_FINAL, lw=1, alpha=0.4, label="as logged")
    width = len(loss) // 30
    if width > 1:
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        middle = steps[(width - 1) // 2 :][: len(smooth)]
        axes.plot(middle, smooth, color=_FINAL, lw=2, label=f"running mean of {width}")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend_below(axes)
    return _svg(
        figure, "loss", f"Training loss, {loss[0]:.3f} at first and {loss[-1]:.3f} at last."
    )


def draw_validation(log: Mapping[str, tuple[np.ndarray, np.ndarray]], chance: float) -> Markup:
    """mAP on the validation split during training, of the final scores and the global stream."""
    figure, axes = _curve_axes("Validation mAP", "step", "mAP (%)", legend_rows=3)
    steps, values = log["val/mAP"]
    axes.plot(steps, values, "o-", ms=3, color=_FINAL, lw=1.8, label="final")
    if "val/global_mAP" in log:
        axes.plot(*log["val/global_mAP"], "o--", ms=3, color=_GLOBAL, label="global stream alone")
    axes.axhline(chance, color=_MUTED, lw=1, ls=":", label="chance")
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend_below(axes)
    return _svg(
        figure, "val", f"Validation mAP: highest {values.max():.1f}, last {values[-1]:.1f}."
    )


def _curve_axes(title: str, xlabel: str, ylabel: str, legend_rows: int) -> tuple[Figure, Axes]:
    """Axes that leave room below for the legend, which can then hide no curve."""
    figure = Figure(figsize=(4.2, 4.0))
    bottom = 0.14 + 0.05 * legend_rows
    axes = figure.add_axes((0.13, bottom, 0.83, 0.92 - bottom))
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, color=_INK)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _legend_below(axes: Axes) -> None:
    figure = axes.get_figure()
    figure.legend(*axes.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.1, 0.0))


def _curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of one curve, a long one thinned evenly along its recall."""
    precision, recall = (values[::-1] for values in precision_recall_curve(scores, labels))
    if len(recall) > 1000:
        keep = np.unique(np.searchsorted(recall, np.linspace(0, 1, 1000)))
        precision, recall = precision[keep], recall[keep]
    return recall, precision


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an element to stand inline: ids of its own, the page's colours, and a name."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text, so it does not matter which letters matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub("<[^>]+>", lambda tag: _own_tag(tag[0], name), svg[svg.index("<svg") :])
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def _own_tag(tag: str, prefix: str) -> str:
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    for variable, colour in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


# --- tables and gallery


def _class_rows(
    names: Sequence[str], ap: Mapping[str, np.ndarray], positives: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        {"name": name, "positives": count} | {stream: ap[stream][c] for stream in ap}
        for c, (name, count) in enumerate(zip(names, positives, strict=True))
    ]


def _picture(
    scores: Scores,
    predicted: np.ndarray,
    i: int,
    image_at: Callable[[int], np.ndarray],
    objects_at: Callable[[int], tuple[np.ndarray, np.ndarray]] | None,
) -> dict[str, Any]:
    """What the page shows of image i."""
    names = scores.class_names
    final = sigmoid(scores.logits[i])
    ranked = np.argsort(-final, kind="stable")
    boxes, classes = ((), ()) if objects_at is None else objects_at(i)
    return {
        "id": scores.image_ids[i],
        "src": data_uri(Image.fromarray(image_at(i))),
        "regions": [
            _region(scores, i, k)
            for k in range(_count_regions(scores))
            if (scores.looked_at is None or scores.looked_at[i, k])
            and is_drawn(sigmoid(scores.global_logits[i, scores.box_classes[i, k]]))
        ],
        "objects": [
            {"name": names[c], **_rectangle(box)} for box, c in zip(boxes, classes, strict=True)
        ],
        "verdicts": [
            (verdict, [(names[c], final[c]) for c in ranked[where[ranked]]])
            for verdict, where in (
                ("hit", predicted[i] & (scores.labels[i] > 0)),
                ("missed", ~predicted[i] & (scores.labels[i] > 0)),
                ("wrong", predicted[i] & (scores.labels[i] < 0)),
                ("unknown", predicted[i] & (scores.labels[i] == 0)),
            )
        ],
    }


def _count_regions(scores: Scores) -> int:
    return 0 if scores.boxes is None else scores.boxes.shape[1]


def _region(scores: Scores, i: int, k: int) -> dict[str, Any]:
    c = scores.box_classes[i, k]
    return {
        "number": k + 1,
        "colour": _region_colour(k),
        "name": scores.class_names[c],
        "global": sigmoid(scores.global_logits[i, c]),
        "final": sigmoid(scores.logits[i, c]),
        **_rectangle(scores.boxes[i, k]),
    }


def _rectangle(box: np.ndarray) -> dict[str, int]:
    y1, x1, y2, x2 = (int(value) for value in box)
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _region_colour(k: int) -> str:
    return REGION_COLOURS[k % len(REGION_COLOURS)]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

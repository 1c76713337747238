"""Charts of the evaluation page: SVG, drawn by matplotlib.

They are drawn in placeholder colours which become the page's CSS variables, so that they follow its
light and dark themes.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlic_jax.metrics.average_precision import (
    precision_recall_curve,
)
from mlic_jax.reports.page import text_width
from mlic_jax.scores.files import Scores

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

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


_STYLE: "dict[RcKeyType, Any]" = {
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
        axes = figure.add_axes((0.44, 0.25 / height, 0.42, 1 - 0.3 / height))
        y = np.arange(len(classes))
        axes.barh(y, final[classes], height=0.62, color=_FINAL)
        if global_stream is not None:
            rings = axes.plot(global_stream[classes], y, "o", ms=5, mew=1.8, clip_on=False)
            rings[0].set(mfc=_CARD, mec=_GLOBAL)
        for row, c in enumerate(classes):
            axes.text(131, row, f"{final[c]:.1f}", ha="right", va="center")
        axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.6), xticks=(0, 50, 100))
        axes.set_yticks(y, [_shortened(names[c], 10.9) for c in classes], color=_INK)
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
        label = f"{word}: {_shortened(scores.class_names[c], 14)}, AP {ap[c]:.1f}"
        recall, precision = _curve(scores.logits[:, c], labels[:, c])
        axes.plot(recall, precision, color=colour, ls=dashes, lw=1.5, label=label)
    recall, precision = _curve(scores.logits, labels)
    axes.plot(recall, precision, color=_INK, lw=2.2, label="all labels together")
    label = f"at the threshold {metrics['threshold']:g}"
    axes.plot(metrics["OR"] / 100, metrics["OP"] / 100, "D", ms=7, color=_INK, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend_below(figure, axes)
    return _svg(figure, "pr", "Precision-recall curves of all labels and of three classes.")


def draw_loss(steps: np.ndarray, loss: np.ndarray) -> Markup:
    """The training loss, and its running mean over a thirtieth of the run."""
    figure, axes = _curve_axes("Training loss", "step", "loss", legend_rows=2)
    alone = "o" if len(loss) == 1 else ""  # no line goes through one point
    axes.plot(steps, loss, color=_FINAL, lw=1, alpha=0.4, marker=alone, label="as logged")
    width = len(loss) // 30
    if width > 1:
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        middle = steps[(width - 1) // 2 :][: len(smooth)]
        axes.plot(middle, smooth, color=_FINAL, lw=2, label=f"running mean of {width}")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend_below(figure, axes)
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
    _legend_below(figure, axes)
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


def _legend_below(figure: Figure, axes: Axes) -> None:
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


def _shortened(name: str, width: float) -> str:
    """A name, its end cut off where it could be wider than so many sizes of the font."""
    if text_width(name) <= width:
        return name
    while name and text_width(name + "…") > width:
        name = name[:-1]
    return name + "…"

"""Pictures for people: one HTML page with the metrics, the curves and a gallery of regions.

The page is a single file that loads nothing: styles are inline, charts are SVG, photographs are
data URIs. `evaluation_page.html.jinja` holds the words and the looks, this module the numbers.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.precision_recall import predicted_labels
from mlic_jax.metrics.ties import said_of_ties
from mlic_jax.reports.charts import (
    _STYLE,
    draw_average_precision,
    draw_loss,
    draw_precision_recall,
    draw_validation,
)
from mlic_jax.reports.label_graph import LabelGraph, describe
from mlic_jax.reports.page import LEAST_GLOBAL, REGION_COLOURS, page_template
from mlic_jax.reports.picture import colours_of_regions, picture_of
from mlic_jax.reports.text import said_of_point
from mlic_jax.scores.files import Scores

GALLERY_SIZE = 24


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
    names = scores.class_names.tolist()
    log = read_train_log(train_log)
    predicted = predicted_labels(scores.logits, metrics["threshold"])
    with matplotlib.rc_context(_STYLE):
        class_charts = draw_average_precision(names, ap["final"], ap.get("global"))
        curves = [draw_precision_recall(scores, ap_labels, ap["final"], metrics)]
        if "loss" in log:
            curves.append(draw_loss(*log["loss"]))
        if "val/mAP" in log:
            curves.append(draw_validation(log, metrics["chance"]))
    gallery = [
        (heading, [picture_of(scores, predicted, int(i), image_at, objects_at) for i in chosen])
        for heading, chosen in choose_images(scores)
    ]
    page = page_template(_PAGE, _FILTERS).render(
        title=title,
        summary=summary or {},
        scores=scores,
        metrics=metrics,
        tied=said_of_ties(metrics),
        point_text=said_of_point(point) if (point := metrics.get("operating_point")) else "",
        stream_map={stream: mean_average_precision(values) for stream, values in ap.items()},
        class_rows=_class_rows(names, ap, metrics["positives"]),
        class_charts=class_charts,
        label_graph=label_graph and describe(label_graph, names),
        group_colours=REGION_COLOURS,
        f1_columns=("CP", "CR", "CF1", "CF1_macro", "OP", "OR", "OF1"),
        curves=curves,
        has_log=bool(log),
        gallery=gallery,
        has_objects=any(picture["objects"] for _, pictures in gallery for picture in pictures),
        least_global=LEAST_GLOBAL,
        region_colours=colours_of_regions(scores),
        image_size=scores.image_size,
        looks_twice=scores.local_logits is not None,
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
    arrays = {name: np.array(points, np.float64) for name, points in curves.items()}
    return {name: (points[:, 0], points[:, 1]) for name, points in arrays.items()}


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


# --- tables


def _class_rows(
    names: Sequence[str], ap: Mapping[str, np.ndarray], positives: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        {"name": name, "positives": count} | {stream: ap[stream][c] for stream in ap}
        for c, (name, count) in enumerate(zip(names, positives, strict=True))
    ]


def _is_number(value: object) -> bool:
    """Of JSON, where True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max

"""The data card as one HTML page: what a set holds, what to beware of, and the commands to train.

The page is a single file that loads nothing. `mlic_jax.data.card` counts, this module places, and
`card.html.jinja` holds the words and the looks.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.data.card import findings
from mlic_jax.data.records import Split
from mlic_jax.reports.page import class_colours, data_uri, page_template

PHOTOS = 12
PHOTOS_HELD_OUT = 4  # of each other split
PHOTO_SIDE = 280  # of the longer side, pixels
MATRIX_CLASSES = 40  # the most frequent ones: more cannot be read
DOTS = 1500  # of the chart of sizes, the most frequent ones
LISTED = 20  # of duplicates

_TEMPLATE = Path(__file__).with_name("data_card.html.jinja")
_FILTERS = {
    "thousands": lambda value: f"{value:,}",
    "percent": lambda share: f"{100 * share:.1f}",
    "decimal": lambda value: f"{value:.1f}",
}


def render_page(
    card: Mapping[str, Any],
    roles: Mapping[str, str],
    train: Split,
    commands: Mapping[str, str],
    held_out: Sequence[Split] = (),
) -> str:
    """The page of a card.

    Args:
        card: of `mlic_jax.data.card.describe`, the training split first.
        roles: train, val and test -> split.
        train: the split that photos are shown of.
        commands: what each is for -> the command.
        held_out: the other splits, of which a few photos are shown, too.
    """
    photos = [_photo(train, i) for i in choose_photos(train, PHOTOS)]
    for split in held_out:
        photos += [_photo(split, i) for i in choose_photos(split, PHOTOS_HELD_OUT)]
    splits = card["splits"]
    return page_template(_TEMPLATE, _FILTERS).render(
        card=card,
        findings=findings(card, roles),
        commands=commands,
        roles={split: [role for role in roles if roles[role] == split] for split in splits},
        images=sum(part["images"] for part in splits.values()),
        labels_per_image=[_mean_labels(part) for part in splits.values()],
        class_rows=class_rows(card),
        histogram=histogram(card),
        matrix=matrix(card),
        sizes=draw_sizes(card["sizes"]),
        photos=photos,
        photos_of=train.split,
        duplicates=card["duplicates"][:LISTED],
        corrections=list(corrections(card)),
    )


def corrections(card: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What people corrected: the lists of `Corrections.described` that hold something, in words."""
    for name, words in (
        ("conflicts", "People disagree: unknown until they agree"),
        ("changed", "Changed"),
        ("gone", "Of photos or classes that there are no more: kept, not applied"),
    ):
        if rows := card.get("corrections", {}).get(name):
            yield words, rows


def class_rows(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a class, the most frequent in training first.

    Of each: `name`, `kept` (how many of the positives are left to train on, where not all are) and
    `splits`, a list of `positives`, `unknown`, `share` of the images that is positive, and `width`
    in percent of the longest bar.
    """
    kept = card["kept"]
    parts = card["splits"].values()
    shares = np.array([np.divide(part["positives"], part["images"]) for part in parts])
    widths = 100 * shares / max(shares.max(), 1e-12)
    order = np.argsort(-shares[0], kind="stable").tolist()
    return [
        {
            "name": card["class_names"][c],
            "kept": kept and kept["positives"][c],
            "splits": [
                {
                    "positives": part["positives"][c],
                    "unknown": part["unknown"][c],
                    "share": shares[k, c],
                    "width": widths[k, c],
                }
                for k, part in enumerate(parts)
            ],
        }
        for c in order
    ]


def histogram(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every number of labels that an image has: `labels`, and of each split `bars`.

    A bar has `images`, their `share` of the split and `width` in percent of the longest one.
    """
    counts = [part["labels_per_image"] for part in card["splits"].values()]
    most = max(map(len, counts))
    images = np.array([count + [0] * (most - len(count)) for count in counts])
    shares = images / images.sum(axis=1, keepdims=True)
    return [
        {
            "labels": n,
            "bars": [
                {
                    "images": int(images[k, n]),
                    "share": shares[k, n],
                    "width": 100 * shares[k, n] / shares.max(),
                }
                for k in range(len(counts))
            ],
        }
        for n in range(most)
    ]


def matrix(card: Mapping[str, Any]) -> dict[str, Any]:
    """Which share of the images with one class (row) shows another one, too (column).

    Returns:
        `names` of the classes, the most frequent first, `MATRIX_CLASSES` at most; `left_out`, the
        number of the others; `cells` that are not 0: `row`, `column`, `share`, `together` images.
    """
    counts = np.array(card["co_occurrence"]["counts"])
    positives = np.diag(counts)
    order = np.argsort(-positives, kind="stable")
    order = order[positives[order] > 0][:MATRIX_CLASSES]
    shown = counts[np.ix_(order, order)]
    return {
        "names": [card["class_names"][c] for c in order],
        "left_out": len(positives) - len(order),
        "cells": [
            {
                "row": row,
                "column": column,
                "share": shown[row, column] / shown[row, row],
                "together": int(shown[row, column]),
            }
            for row, column in np.argwhere(shown).tolist()
            if row != column
        ],
    }


def draw_sizes(sizes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The chart of widths and heights in a square of 100 x 100, (0, 0) at its lower left.

    Args:
        sizes: [width, height, images] of each size, the most frequent first.

    Returns:
        `dots`: `x`, `y`, `radius` (their area tells how many images) and `text`; `ticks`: position
        and pixels; `quantiles`: of the width and the height the least, the median and the greatest.
    """
    values = np.array(sizes, np.float64)
    sides, images = values[:, :2], values[:, 2]
    step = _round_step(sides.max() / 4)
    scale = 100 / (step * np.ceil(sides.max() / step))
    radii = np.clip(8 * np.sqrt(images / images.sum()), 0.5, 5)
    repeated = np.repeat(sides, images.astype(int), axis=0)
    quantiles = np.quantile(repeated, (0, 0.5, 1), axis=0, method="nearest").astype(int)
    return {
        "dots": [
            {
                "x": scale * width,
                "y": scale * height,
                "radius": radius,
                "text": f"{width} x {height}: {count:,}",
            }
            for (width, height, count), radius in zip(sizes[:DOTS], radii[:DOTS], strict=True)
        ],
        "ticks": [(scale * pixels, int(pixels)) for pixels in np.arange(step, 101 / scale, step)],
        "quantiles": quantiles.T.tolist(),
        "distinct": len(sizes),
    }


def choose_photos(split: Split, most: int) -> list[int]:
    """A fixed random sample of the images that show a class, or of all if none does."""
    with_label = np.flatnonzero((split.labels() == 1).any(axis=1))
    candidates = with_label if len(with_label) else np.arange(len(split))
    return sorted(np.random.default_rng(0).permutation(candidates)[:most].tolist())


def _photo(split: Split, position: int) -> dict[str, Any]:
    record = split[position]
    image = split.decode(record)
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    labels = split.labels()[position]
    colours = class_colours(record.box_classes.tolist())
    return {
        "split": split.split,
        "id": record.image_id,
        "src": data_uri(image),
        "width": record.width,
        "height": record.height,
        "present": [split.class_names[c] for c in np.flatnonzero(labels == 1)],
        "unknown": [split.class_names[c] for c in np.flatnonzero(labels == 0)],
        "boxes": [
            {
                "x": x1,
                "y": y1,
                "width": x2 - x1,
                "height": y2 - y1,
                "name": split.class_names[c],
                "colour": colours[c],
            }
            for (y1, x1, y2, x2), c in zip(
                record.boxes.tolist(), record.box_classes.tolist(), strict=True
            )
        ],
    }


def _mean_labels(part: Mapping[str, Any]) -> float:
    return sum(n * images for n, images in enumerate(part["labels_per_image"])) / part["images"]


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** np.floor(np.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)

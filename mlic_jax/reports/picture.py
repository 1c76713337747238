"""A photo of a page, with regions, true boxes and labels: what `picture.html.jinja` shows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.metrics.precision_recall import sigmoid
from mlic_jax.reports.page import REGION_COLOURS, class_colours, data_uri, is_drawn
from mlic_jax.scores.files import Scores


def picture_of(
    scores: Scores,
    predicted: np.ndarray,
    i: int,
    image_at: Callable[[int], np.ndarray],
    objects_at: Callable[[int], tuple[np.ndarray, np.ndarray]] | None,
) -> dict[str, Any]:
    """What a page shows of image i: its pixels, regions, true boxes, and labels by their verdicts.

    Args:
        scores: of the split.
        predicted: bool [N, C], the labels that count as predicted.
        i: the image.
        image_at, objects_at: see `write_report`.
    """
    names = scores.class_names
    final = sigmoid(scores.logits[i])
    ranked = np.argsort(-final, kind="stable")
    objects = [] if objects_at is None else list(zip(*objects_at(i), strict=True))
    # A true box has the colour of the region of its class, where there is one.
    seen = [] if scores.box_classes is None else scores.box_classes[i].tolist()
    colours = class_colours([*seen, *(int(c) for _, c in objects)])
    return {
        "id": scores.image_ids[i],
        "src": data_uri(Image.fromarray(image_at(i))),
        "regions": _regions(scores, i),
        "objects": [
            {"name": names[c], "colour": colours[int(c)], **_rectangle(box)} for box, c in objects
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


def colours_of_regions(scores: Scores) -> list[str]:
    """Of all regions of an image; empty of a model that has none."""
    count = 0 if scores.boxes is None else scores.boxes.shape[1]
    return [_region_colour(k) for k in range(count)]


def _regions(scores: Scores, i: int) -> list[dict[str, Any]]:
    """Those of image i that are drawn; none of a model that has none."""
    boxes, classes = scores.boxes, scores.box_classes
    if boxes is None or classes is None:
        return []
    of_photo = scores.logits if scores.global_logits is None else scores.global_logits
    of_classes = sigmoid(of_photo[i])
    final = sigmoid(scores.logits[i])
    return [
        {
            "number": k + 1,
            "colour": _region_colour(k),
            "name": scores.class_names[c],
            "global": of_classes[c],
            "final": final[c],
            **_rectangle(box),
        }
        for k, (box, c) in enumerate(zip(boxes[i], classes[i], strict=True))
        if (scores.looked_at is None or scores.looked_at[i, k]) and is_drawn(of_classes[c])
    ]


def _rectangle(box: np.ndarray) -> dict[str, int]:
    y1, x1, y2, x2 = (int(value) for value in box)
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _region_colour(k: int) -> str:
    return REGION_COLOURS[k % len(REGION_COLOURS)]

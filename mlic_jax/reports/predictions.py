"""Pictures of predictions: annotated photos, activation maps and the page that shows them."""

import collections
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from mlic_jax.data.image_files import image_suffixes
from mlic_jax.models.ops.regions import interpolation_matrix
from mlic_jax.reports.drawing import annotate
from mlic_jax.reports.page import LEAST_GLOBAL, REGION_COLOURS, is_drawn, page_template
from mlic_jax.scores.predictions import Box, Prediction

ANNOTATED, GALLERY = "annotated", "gallery"  # folders
PHOTO_SIDE = 640  # of the longer side of a photo in the gallery, pixels
MAP_SIDE = 112  # of an activation map there, which the page stretches over the photo
RUNNERS_UP = 3  # labels below their thresholds that the gallery shows
COUNTED = 12  # labels that a summary counts
JPEG = (".jpg", ".jpeg")
LONGEST_PART, LONGEST_NAME = 240, 1000  # bytes of an annotated photo's name; systems take 255, 4095
_TEMPLATE = Path(__file__).with_name("predictions.html.jinja")


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A line of `predictions.jsonl`."""
    return {
        "file": prediction.file,
        "width": prediction.width,
        "height": prediction.height,
        "labels": list(prediction.labels),
        "scores": {name: round(value, 6) for name, value in prediction.scores.items()},
        "regions": [
            {
                "class": region.class_name,
                "box": dict(zip(("y1", "x1", "y2", "x2"), region.box, strict=True)),
                "global": round(region.global_probability, 6),
                "local": region.local_probability and round(region.local_probability, 6),
            }
            for region in prediction.regions
        ],
        "error": prediction.error,
    }


def from_json(row: Mapping[str, Any]) -> Prediction:
    """What a line of `predictions.jsonl` says, without the regions."""
    return Prediction(
        file=row["file"],
        width=row["width"],
        height=row["height"],
        labels=tuple(row["labels"]),
        scores=row["scores"],
        error=row["error"],
    )


def counted(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How many photos have each label that any of them has, the most frequent first.

    Args:
        rows: anything with `labels`, of photos that were read.
    """
    counts = collections.Counter(name for row in rows for name in row["labels"])
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What there is to say of all lines of `predictions.jsonl` together: photos, labels, failures.

    Few lines of text, however many photos and labels there are.
    """
    good = [row for row in rows if not row["error"]]
    failed = len(rows) - len(good)
    photos = f"photos: {len(rows)}"
    if failed:
        photos += f", of which {failed} could not be read or drawn"
    counts = counted(good)
    labels = [f"{name} {count}" for name, count in counts[:COUNTED]]
    if len(counts) > COUNTED:
        labels.append(f"{len(counts) - COUNTED} other labels")
    if without := sum(not row["labels"] for row in good):
        labels.append(f"no label {without}")
    return [photos, f"labels: {', '.join(labels)}"] if good else [photos]


def annotated_name(file: str) -> str:
    """The annotated photo of a file: of its name, a JPEG, and no two files have the same.

    `a.png` becomes `a.png.jpg`, and a file that has that name already `a.png.jpg.jpg`. A folder
    never gets the name of a file.
    """
    *folders, name = file.split("/")
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in JPEG or os.path.splitext(stem)[1].lower() in image_suffixes():
        name += ".jpg"
    folders = [part + "_" if part.rstrip("_").lower().endswith(JPEG) else part for part in folders]
    parts = [*folders, name]
    if (
        max(len(part.encode()) for part in parts) > LONGEST_PART
        or len(file.encode()) > LONGEST_NAME
    ):
        return f"{_key(file)}.jpg"
    return "/".join(parts)


def _key(file: str) -> str:
    """A short name of a file, which no other has."""
    return hashlib.blake2b(file.encode(), digest_size=8).hexdigest()


def picture_files(row: dict[str, Any]) -> list[str]:
    """Where the pictures of a photo are: annotated, in the gallery, the maps of drawn regions."""
    if row["error"]:
        return []
    gallery = f"{GALLERY}/{_key(row['file'])}"
    maps = [
        f"{gallery}_{number}.png"
        for number, region in enumerate(row["regions"], start=1)
        if is_drawn(region["global"])
    ]
    return [f"{ANNOTATED}/{annotated_name(row['file'])}", f"{gallery}.jpg", *maps]


def encode_pictures(image: Image.Image, prediction: Prediction) -> list[bytes]:
    """What `picture_files` names, encoded."""
    seen, size = prediction.seen or (0, 0, image.height, image.width), image.size
    annotated = _encoded(annotate_prediction(image, prediction), "JPEG", quality=92)
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    regions = (region for region in prediction.regions if is_drawn(region.global_probability))
    maps = [_encoded(heat_map(region.class_map, seen, size), "PNG") for region in regions]
    return [annotated, _encoded(image, "JPEG", quality=82), *maps]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def page_picture(entry: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """What the page shows of a photo."""
    row = entry["row"]
    picture = {"file": row["file"], "error": row["error"]}
    if row["error"]:
        return picture
    annotated, photo, *maps = picture_files(row)
    scores, labels = row["scores"], row["labels"]
    ranked = sorted(scores, key=scores.get, reverse=True)
    others = [name for name in ranked if name not in labels][:RUNNERS_UP]
    numbered = enumerate(zip(row["regions"], entry["peaks"], strict=True), start=1)
    drawn = [(k, region, peak) for k, (region, peak) in numbered if is_drawn(region["global"])]
    return picture | {
        "photo": photo,
        "annotated": annotated,
        "width": row["width"],
        "height": row["height"],
        "labels": labels,
        "bars": [(name, scores[name], thresholds[name]) for name in (*labels, *others)],
        "regions": [
            _page_region(number, region, peak, path, region["class"] in labels)
            for (number, region, peak), path in zip(drawn, maps, strict=True)
        ],
    }


def annotate_prediction(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Draws the regions of the predicted labels, and as notes the labels without one.

    Args:
        image: the upright photo that the prediction is of, RGB.
        prediction: without an error.
    """
    shown = [
        region
        for region in prediction.regions
        if region.class_name in prediction.labels and is_drawn(region.global_probability)
    ]
    located = {region.class_name for region in shown}
    captions = {name: f"{name} {prediction.scores[name]:.2f}" for name in prediction.labels}
    return annotate(
        image,
        [region.box for region in shown],
        [captions[region.class_name] for region in shown],
        [caption for name, caption in captions.items() if name not in located],
    )


def _page_region(
    number: int, region: dict[str, Any], peak: float, path: str, predicted: bool
) -> dict[str, Any]:
    box = region["box"]
    return {
        "number": number,
        "colour": REGION_COLOURS[(number - 1) % len(REGION_COLOURS)],
        "name": region["class"],
        "global": region["global"],
        "local": region["local"],
        "predicted": predicted,
        "peak": peak,
        "map": path,
        "x": box["x1"],
        "y": box["y1"],
        "width": box["x2"] - box["x1"],
        "height": box["y2"] - box["y1"],
    }


def heat_map(class_map: np.ndarray, seen: Box, size: tuple[int, int]) -> Image.Image:
    """A class activation map [h, w] from its least (clear) to its highest (bright) value.

    To be stretched over the photo. Upsampled as the model does, with align_corners=True.

    Args:
        seen: what the map is of; outside of it nothing is.
        size: (width, height) of the photo that it is in.
    """
    sides = (size[1], size[0]) * 2
    y1, x1, y2, x2 = (round(MAP_SIDE * edge / side) for edge, side in zip(seen, sides, strict=True))
    height, width = max(1, y2 - y1), max(1, x2 - x1)  # of a ribbon there may be less than a cell
    rows, columns = map(interpolation_matrix, class_map.shape, (height, width))
    fine = rows @ class_map @ columns.T
    fine = (fine - fine.min()) / max(float(fine.max() - fine.min()), 1e-12)
    levels = 64
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, levels), bytes=True)[:, :3]
    pixels = np.full((MAP_SIDE, MAP_SIDE), levels, np.uint8)  # a level of its own, which is clear
    y1, x1 = min(y1, MAP_SIDE - height), min(x1, MAP_SIDE - width)
    pixels[y1 : y1 + height, x1 : x1 + width] = np.round(fine * (levels - 1))
    image = Image.frombytes("P", pixels.shape, pixels.tobytes())
    image.putpalette(colours.tobytes() + bytes(3))
    alphas = [int(255 * share) for share in np.linspace(0.35, 0.65, levels)]
    image.info["transparency"] = bytes([*alphas, 0])
    return image


def render_page(pictures: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """The gallery: photos with their labels, and on demand crop and activation map of regions.

    Args:
        pictures: of `page_picture`.
        about: what is to be known of the model, a line each.
    """
    good = [picture for picture in pictures if not picture["error"]]
    return page_template(_TEMPLATE, {"probability": lambda value: f"{value:.2f}"}).render(
        pictures=good,
        failures=[picture for picture in pictures if picture["error"]],
        counts=counted(good),
        unlabelled=sum(not picture["labels"] for picture in good),
        about=about,
        has_regions=any(picture["regions"] for picture in good),
        looks_twice=any(
            region["local"] is not None for picture in good for region in picture["regions"]
        ),
        least_global=LEAST_GLOBAL,
    )

"""Photos in, files out: a table, lines of JSON, annotated photos and a page to look at.

The page loads photos and activation maps from files beside it, when they come into view: one of a
thousand photos opens at once.
"""

import collections
import contextlib
import csv
import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from mlic_jax.atomic import write_text
from mlic_jax.data.image_files import image_suffixes
from mlic_jax.drawing import annotate
from mlic_jax.errors import Failure, UsageError
from mlic_jax.models.regions import interpolation_matrix
from mlic_jax.predict import (
    THREADS,
    Prediction,
    Predictor,
    Region,
    even_batch_size,
    in_order,
    load_model,
    printable,
    read_upright,
)
from mlic_jax.report import REGION_COLOURS, page_template
from mlic_jax.views import view_sizes

TABLE, LINES, PAGE = "predictions.csv", "predictions.jsonl", "index.html"
ANNOTATED, GALLERY = "annotated", "gallery"  # folders
PHOTO_SIDE = 640  # of the longer side of a photo in the gallery, pixels
MAP_SIDE = 112  # of an activation map there, which the page stretches over the photo
RUNNERS_UP = 3  # labels below their thresholds that the gallery shows

_PARTIAL = ".partial"  # where outputs grow; a killed run leaves it
_TEMPLATE = Path(__file__).with_name("predict.html.jinja")


def predict_files(
    checkpoint: str | Path,
    images: str,
    out: str | Path,
    flip: bool | None = None,
    scales: Sequence[int] | None = None,
    local_size: int | None = None,
    local_bound: float | None = None,
) -> None:
    """Predicts the photos of a folder (and the folders in it), of a pattern, or a single one.

    Writes into `out`, in the place of earlier predictions, once all is done: `predictions.csv`, a
    row a photo; `predictions.jsonl`, with the regions; `annotated/`, the photos with what was found
    in them; and the page `index.html` with its files in `gallery/`. The options are those of
    `Predictor.from_checkpoint`.

    Raises:
        UsageError: no images, a wrong option, or `out` holds something else.
        Failure: some photos could not be read, which the outputs list beside all the others.
    """
    out = Path(out)
    _check_output(out)
    root, files = find_images(images, out)
    config, variables, metadata = load_model(checkpoint, flip, scales, local_size, local_bound)
    batch_size = even_batch_size(len(files), config.eval.batch_size)
    predictor = Predictor(config, variables, metadata, batch_size)
    try:
        failed = write_predictions(predictor, root, files, out, f"{checkpoint}")
    except OSError as error:
        raise Failure(f"{out}: cannot be written ({error.strerror or error})") from error
    print(f"table, photos and page: {out / TABLE}, {out / ANNOTATED}, {out / PAGE}")
    if failed:
        shown = ", ".join(failed[:3]) + (", ..." if len(failed) > 3 else "")
        raise Failure(
            f"{len(failed)} of {len(files)} images could not be read: {shown}; {out / TABLE} says "
            "why, and holds all others"
        )


def _check_output(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; it must be a folder")
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if entries - {_PARTIAL} and LINES not in entries:
        raise UsageError(f"--out {out} holds something else than predictions; choose another")


def find_images(where: str, out: Path) -> tuple[Path, list[Path]]:
    """The folder that all images lie in, and the images, sorted.

    In folders and patterns only files count whose name ends as Pillow's formats do, no hidden ones,
    and none in `out`. How many others there are is printed.

    Raises:
        UsageError: there is no such folder or file, or no image in it.
    """
    path = Path(where)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
    else:
        found = map(Path, glob.glob(where, recursive=True))
    out = out.resolve()
    files = [file for file in sorted(found) if file.is_file() and out not in file.resolve().parents]
    suffixes = image_suffixes()
    images = [file for file in files if file.suffix.lower() in suffixes]
    others = sorted({file.suffix.lower() or file.name for file in files} - suffixes)
    if not images:
        seen = f"; there are {', '.join(others[:5])}" if others else ""
        raise UsageError(f"--images {where}: no image of a format that Pillow reads{seen}")
    if others:
        count = len(files) - len(images)
        print(f"{count} files that are no images are passed over: {', '.join(others[:5])}")
    root = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in images]))
    return root, images


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def write_predictions(
    predictor: Predictor, root: Path, files: Sequence[Path], out: Path, checkpoint: str
) -> list[str]:
    """Predicts files of the folder `root` and writes all outputs; gives the files that failed."""
    names = [printable(file.relative_to(root)) for file in files]
    pictures: list[dict[str, Any]] = []
    with (
        replaced_together(out, (TABLE, LINES, ANNOTATED, GALLERY, PAGE)) as folder,
        (folder / TABLE).open("w", newline="", encoding="utf-8") as table,
        (folder / LINES).open("w", encoding="utf-8") as lines,
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(files), desc="predict", unit="image") as bar,
    ):
        (folder / ANNOTATED).mkdir()
        (folder / GALLERY).mkdir()
        writer = csv.writer(table)
        writer.writerow(["file", "labels", "error", *predictor.class_names])

        def written() -> Iterator[tuple[Prediction, Path, str, int]]:
            annotated = annotated_names(names)
            predictions = predictor.stream(files)
            for k, (prediction, file) in enumerate(zip(predictions, files, strict=True)):
                prediction = dataclasses.replace(prediction, file=names[k])
                writer.writerow(table_row(prediction, predictor.class_names))
                lines.write(json.dumps(as_json(prediction)) + "\n")
                yield prediction, file, annotated[k], k

        def draw(arguments: tuple[Prediction, Path, str, int]) -> dict[str, Any]:
            return draw_picture(folder, predictor, *arguments)

        for picture in in_order(pool, draw, written(), 2 * THREADS):
            pictures.append(picture)
            bar.update()
        write_text(folder / PAGE, render_page(predictor, pictures, checkpoint))
    return [picture["file"] for picture in pictures if picture["error"]]


@contextlib.contextmanager
def replaced_together(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """Gives a folder to write files and folders in, which at the end replace those in `out`.

    If the block raises, `out` holds what it held before.
    """
    out.mkdir(parents=True, exist_ok=True)
    partial = out / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        for name in names:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            (partial / name).replace(out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()


def annotated_names(names: Sequence[str]) -> list[str]:
    """The annotated file of every photo: of its name, a JPEG, and no two the same."""
    chosen: dict[str, None] = {}
    for name in names:
        if not name.lower().endswith((".jpg", ".jpeg")):
            name += ".jpg"
        while name in chosen:
            name += ".jpg"
        chosen[name] = None
    return list(chosen)


def table_row(prediction: Prediction, class_names: Sequence[str]) -> list[str]:
    """A row of `predictions.csv`."""
    scores = [f"{prediction.scores[name]:.6f}" for name in class_names if prediction.scores]
    return [
        prediction.file,
        ";".join(prediction.labels),
        prediction.error or "",
        *(scores or [""] * len(class_names)),
    ]


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
                "local": round(region.local_probability, 6),
            }
            for region in prediction.regions
        ],
        "error": prediction.error,
    }


# --- pictures


def draw_picture(
    folder: Path, predictor: Predictor, prediction: Prediction, file: Path, annotated: str, k: int
) -> dict[str, Any]:
    """Writes the annotated photo and the gallery's files of photo k; gives what the page shows."""
    picture: dict[str, Any] = {"file": prediction.file, "error": prediction.error}
    if prediction.error:
        return picture
    image = read_upright(file)
    path = folder / ANNOTATED / annotated
    path.parent.mkdir(parents=True, exist_ok=True)
    annotate_prediction(image, prediction).save(path, "JPEG", quality=92)
    photo = f"{GALLERY}/{k:06d}.jpg"
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    image.save(folder / photo, "JPEG", quality=82)
    ranked = sorted(prediction.scores, key=prediction.scores.get, reverse=True)
    others = [name for name in ranked if name not in prediction.labels][:RUNNERS_UP]
    thresholds = dict(zip(predictor.class_names, predictor.thresholds.tolist(), strict=True))
    return picture | {
        "photo": photo,
        "annotated": f"{ANNOTATED}/{annotated}",
        "width": prediction.width,
        "height": prediction.height,
        "labels": prediction.labels,
        "bars": [
            (name, prediction.scores[name], thresholds[name])
            for name in (*prediction.labels, *others)
        ],
        "regions": [
            _draw_region(folder, region, f"{GALLERY}/{k:06d}_{number}.png", number, prediction)
            for number, region in enumerate(prediction.regions, start=1)
        ],
    }


def annotate_prediction(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Draws the regions of the predicted labels, and as notes the labels without a region.

    Args:
        image: the upright photo that the prediction is of, RGB.
        prediction: without an error.
    """
    shown = [region for region in prediction.regions if region.class_name in prediction.labels]
    located = {region.class_name for region in shown}
    captions = {name: f"{name} {prediction.scores[name]:.2f}" for name in prediction.labels}
    return annotate(
        image,
        [region.box for region in shown],
        [captions[region.class_name] for region in shown],
        [caption for name, caption in captions.items() if name not in located],
    )


def _draw_region(
    folder: Path, region: Region, path: str, number: int, prediction: Prediction
) -> dict[str, Any]:
    heat_map(region.class_map).save(folder / path, "PNG")
    y1, x1, y2, x2 = region.box
    return {
        "number": number,
        "colour": REGION_COLOURS[(number - 1) % len(REGION_COLOURS)],
        "name": region.class_name,
        "global": region.global_probability,
        "local": region.local_probability,
        "predicted": region.class_name in prediction.labels,
        "peak": float(region.class_map.max()),
        "map": path,
        "x": x1,
        "y": y1,
        "width": x2 - x1,
        "height": y2 - y1,
    }


def heat_map(class_map: np.ndarray) -> Image.Image:
    """A class activation map [h, w] from its least (clear) to its highest (bright) value.

    To be stretched over the photo. Upsampled as the model does, with align_corners=True.
    """
    rows, columns = (interpolation_matrix(side, MAP_SIDE) for side in class_map.shape)
    fine = rows @ class_map @ columns.T
    fine = (fine - fine.min()) / max(float(fine.max() - fine.min()), 1e-12)
    levels = 64
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, levels), bytes=True)[:, :3]
    image = Image.fromarray(np.round(fine * (levels - 1)).astype(np.uint8))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours.tobytes())
    image.info["transparency"] = bytes(
        int(255 * share) for share in np.linspace(0.35, 0.65, levels)
    )
    return image


def render_page(predictor: Predictor, pictures: Sequence[dict[str, Any]], checkpoint: str) -> str:
    """The gallery: photos with their labels, and on demand crop and activation map of regions."""
    good = [picture for picture in pictures if not picture["error"]]
    counts = collections.Counter(name for picture in good for name in picture["labels"])
    model, views = predictor.config.model, predictor.config.eval
    sizes = view_sizes(predictor.config)
    about = {
        "checkpoint": checkpoint,
        "model": f"{model.name} on {model.backbone}",
        "image size": ", ".join(f"{size} px" for size in sizes),
        "classes": str(len(predictor.class_names)),
        "labels from": predictor.rule,
    }
    if predictor.temperature != 1:
        about["temperature"] = f"{predictor.temperature:.3f}"
    if views.flip:
        about["mirrored too"] = "yes"
    if views.local_size:
        about["crops"] = f"{views.local_size} px"
    if views.local_bound:
        about["regions"] = f"of probability {views.local_bound:g} and more"
    return page_template(_TEMPLATE, {"probability": lambda value: f"{value:.2f}"}).render(
        pictures=good,
        failures=[picture for picture in pictures if picture["error"]],
        counts=sorted(counts.items(), key=lambda item: (-item[1], item[0])),
        unlabelled=sum(not picture["labels"] for picture in good),
        about=about,
        has_regions=any(picture["regions"] for picture in good),
    )

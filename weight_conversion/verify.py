"""Runs one checkpoint through Flax and through plain PyTorch, and says how far they are apart.

    python -m weight_conversion.verify --checkpoint X --data DIR [--split NAME] [--images N]
        [--train-steps N] [--batch-size B] [--image-size S] [--out DIR]

X is a PyTorch or safetensors file, a converted checkpoint or a run. DIR is a prepared set
(`prepared/<name>`), or any folder of photos, which has no labels and so no mAP. Both frameworks get
the same decoded, resized and normalised pixels, in float32, ours with the highest matmul precision.
PyTorch runs `weight_conversion.torch_reference`, which shares no code with our models. A table is
printed, and `verify.json` and `verify.html` are written. The exit code is 1 where one of the bounds
below is missed, 2 for a wrong request.

A region whose edge falls on another pixel gives the second look another crop, so its local scores
differ for a legitimate reason. Regions have a bound of their own; that of the scores is for the
images all of whose regions agree, and the errors over all images stand beside it.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.data import transforms
from mlic_jax.data.label_files import order_of
from mlic_jax.data.records import open_split
from mlic_jax.data.transforms import Range
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.precision_recall import sigmoid
from mlic_jax.reports.page import page_template
from weight_conversion.sides import (
    TRUNK_PREFIXES,
    Arrays,
    Checkpoint,
    JaxSide,
    TorchSide,
    read_checkpoint,
    torch_state,
    training_config,
)

# The outputs that begin with the axis of the images.
OF_AN_IMAGE = {"logits", "global_logits", "local_logits", "boxes", "box_classes"}

# In float32 with the highest matmul precision two implementations of one model differ by rounding
# alone. What is left after a hundred layers stays well within these.
MAX_STAGE_ERROR = 1e-4  # of a trunk, relative to the largest value of the stage
MAX_SCORE_ERROR = 1e-4  # probabilities
MIN_IDENTICAL_BOXES = 0.99
MAX_MAP_DIFFERENCE = 0.05  # percentage points

# Of training: the difference of two losses relative to the loss, and that of two trained states
# relative to how far they moved, after one step and at most. Rounding grows with every step, up to
# tenfold where batches and maps are small, for their statistics normalise and are a part of the
# gradient. Measured on a MobileNetV2 with batches of 4 after three steps: losses 1e-6, head and
# statistics 5e-6, trunk 3e-3; on a random ResNet-18 with maps of 2 x 2, which is hard: 8e-5, 1e-4,
# 2e-2, and after eight steps 2e-2, 8e-3, 1e-1. A wrong rate or momentum is of the order of 1.
TRAINING_BOUNDS = {
    "losses": (1e-4, 0.05),
    "head": (1e-4, 0.05),
    "statistics": (1e-4, 0.05),
    "trunk": (1e-2, 0.2),
}
GROWTH_OF_A_STEP = 10

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CHART_DECADES = (-9, 0)  # of the errors that the page shows


# --- the photos ---


@dataclass(frozen=True)
class Photos:
    """The images that both frameworks see: of a prepared split, or of a folder, without labels."""

    name: str
    ids: Sequence[str]
    decoded: Callable[[int], Image.Image]
    labels: np.ndarray | None = None  # int8 [N, C] in {+1, 0, -1}
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, rows: Sequence[int], size: int) -> np.ndarray:
        """The images at `rows`, uint8 [B, S, S, 3].

        Raises:
            Failure: one cannot be read.
        """
        return np.stack([self._pixels(int(i), size) for i in rows])

    def _pixels(self, i: int, size: int) -> np.ndarray:
        try:
            return transforms.resize(self.decoded(i), size)
        except (Failure, OSError) as error:
            raise Failure(f"{self.name}, {self.ids[i]}: {error}") from error


def open_photos(
    data: Path,
    split: str | None,
    limit: int | None,
    upright: bool = False,
    value_range: Range | None = None,
) -> Photos:
    """The first `limit` images of a prepared set's split (by default `test`) or of a folder.

    A set says itself how its images are to be seen.

    Args:
        upright, value_range: how those of a folder are, see `transforms.decode`.

    Raises:
        UsageError: there is no such folder, set or split, or it holds no photo.
    """
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder")
    if (data / "dataset_info.json").is_file():
        records = open_split(data, split or "test")
        ids = [records.image_id(i) for i in range(len(records))][:limit]
        labels = records.labels()[:limit]
        name = f"{records.name} {records.split}"
        return Photos(name, ids, lambda i: records.decode(records[i]), labels, records.class_names)
    if split is not None:
        raise UsageError(f"--split is for a prepared set, and {data} holds none")
    files = sorted(file for file in data.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise UsageError(f"{data} holds neither a prepared set nor photos")
    ids = [str(file.relative_to(data)) for file in files][:limit]
    return Photos(
        data.resolve().name,
        ids,
        lambda i: transforms.decode(files[i].read_bytes(), upright, value_range),
    )


def in_order_of(class_names: Sequence[str], photos: Photos) -> np.ndarray | None:
    """The labels of `photos`, int8 [N, C], in the order of a checkpoint's `class_names`.

    A checkpoint that does not name its classes has them in the order of the set.

    Raises:
        UsageError: the classes are not those of the set.
    """
    if photos.labels is None or not class_names:
        return None
    if list(class_names) == [str(c) for c in range(len(photos.class_names))]:
        return photos.labels
    return photos.labels[:, order_of(photos.class_names, class_names, photos.name)]


# --- how far they are apart ---


@dataclass
class Difference:
    """The largest difference between two arrays, over all that were added."""

    shape: list[int] = field(default_factory=list)  # of a batch
    absolute: float = 0.0
    largest: float = 0.0  # value of the reference

    def add(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> "Difference":
        """Takes another pair of arrays.

        Raises:
            Failure: they are not finite.
        """
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            raise Failure(f"{name} is not finite: the checkpoint overflows on these images")
        self.shape = list(ours.shape)
        self.absolute = max(self.absolute, float(np.max(np.abs(ours - theirs), initial=0)))
        self.largest = max(self.largest, float(np.max(np.abs(theirs), initial=0)))
        return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the error relative to the largest value."""
        relative = ratio(self.absolute, self.largest)
        return {"shape": self.shape, "absolute": self.absolute, "relative": relative}


def ratio(error: float, scale: float) -> float:
    """error / scale; 0 where there is no error, and a huge number where there is only error."""
    return float(error / max(scale, np.finfo(np.float32).tiny)) if error else 0.0


def run_both(
    checkpoint: Checkpoint, photos: Photos, batch_size: int
) -> tuple[dict[str, Difference], Arrays, Arrays]:
    """Differences by name over all images, and what each side said of them: logits, boxes, ...

    The maps of the stages are compared batch by batch and not kept.
    """
    sides = JaxSide(checkpoint), TorchSide(checkpoint)
    differences: dict[str, Difference] = {}
    said: tuple[list, list] = ([], [])
    with tqdm(total=len(photos), desc="compare", unit="photo") as bar:
        for rows in batches_of(len(photos), batch_size):
            images = checkpoint.normalise(photos.pixels(rows, checkpoint.image_size))
            ours, theirs = (side.run(images) for side in sides)
            for name in ours:
                if np.issubdtype(ours[name].dtype, np.floating):
                    difference = differences.setdefault(name, Difference())
                    difference.add(name, ours[name], theirs[name])
            for outputs, kept in zip((ours, theirs), said, strict=True):
                kept.append({n: a for n, a in outputs.items() if not n.startswith("stage")})
            bar.update(min(len(rows), len(photos) - bar.n))
    ours, theirs = (_joined(kept, len(photos)) for kept in said)
    return dict(sorted(differences.items(), key=lambda item: "stage" not in item[0])), ours, theirs


def _joined(batches: Sequence[Arrays], count: int) -> Arrays:
    """The outputs of all `count` images; those of the labels alone are the same in every batch."""
    joined = dict(batches[-1])
    for name in OF_AN_IMAGE & joined.keys():
        joined[name] = np.concatenate([outputs[name] for outputs in batches])[:count]
    return joined


def batches_of(count: int, batch_size: int) -> list[np.ndarray]:
    """Every position once, in order; the last batch is filled up from the start, to be as long."""
    size = min(batch_size, count)
    return [np.arange(start, start + size) % count for start in range(0, count, size)]


def box_distances(ours: Arrays, theirs: Arrays) -> np.ndarray:
    """How far each of our boxes [N, T, 4] is from the same class's: float64 [N, T], pixels.

    The largest distance of two sides; infinite where the other framework did not look at the class.
    Two classes that tie for a place may come in either order.
    """
    same = ours["box_classes"][:, :, None] == theirs["box_classes"][:, None, :]
    sides = ours["boxes"][:, :, None].astype(np.float64) - theirs["boxes"][:, None]
    return np.where(same, np.abs(sides).max(axis=-1), np.inf).min(axis=-1)


def compare_boxes(distances: np.ndarray) -> dict[str, Any]:
    """Shares of the boxes, from `box_distances`."""
    return {
        "count": distances.size,
        "identical": float(np.mean(distances == 0)),
        "within_one_pixel": float(np.mean(distances <= 1)),
        "images_with_identical_boxes": int(np.sum((distances == 0).all(axis=1))),
    }


def compare_scores(ours: Arrays, theirs: Arrays, chosen: np.ndarray) -> dict[str, float]:
    """The largest difference of the probabilities [N, C] over the `chosen` images, bool [N].

    By stream, and of the logits of the local one, which the choice of the regions moves most.
    """
    result = {"images": int(chosen.sum())}
    for name in ("logits", "global_logits", "local_logits"):
        if name in ours:
            pair = (sigmoid(side[name][chosen]) for side in (ours, theirs))
            result[name.replace("logits", "scores")] = (
                Difference().add(name, *pair).as_dict()["absolute"]
            )
    return result


def compare_average_precision(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any] | None:
    """mAP and AP of the logits [N, C] of both, in percent; None where no class has a positive."""
    ap = {"jax": average_precision(ours, labels), "torch": average_precision(theirs, labels)}
    has_ap = ~np.isnan(ap["torch"])
    if not has_ap.any():
        return None
    result: dict[str, Any] = {side: mean_average_precision(values) for side, values in ap.items()}
    result["difference"] = result["jax"] - result["torch"]
    result["classes"] = [
        {
            "name": class_names[c],
            "positives": int(np.sum(labels[:, c] > 0)),
            "jax": float(ap["jax"][c]),
            "torch": float(ap["torch"][c]),
            "difference": float(ap["jax"][c] - ap["torch"][c]),
        }
        for c in np.flatnonzero(has_ap)
    ]
    return result


# --- training ---


def compare_training(
    checkpoint: Checkpoint, photos: Photos, labels: np.ndarray, steps: int, batch_size: int
) -> dict[str, Any]:
    """Takes `steps` optimiser steps in both, from the same weights on the same batches.

    Returns the losses of every step, and for each group of tensors how far the two ended apart: the
    norm of the difference over the norm of what the steps changed.
    """
    size = min(batch_size, len(photos))
    positions = [np.arange(k * size, (k + 1) * size) % len(photos) for k in range(steps)]
    batches = [(photos.pixels(rows, checkpoint.image_size), labels[rows]) for rows in positions]
    config = training_config(checkpoint)
    ours = JaxSide(checkpoint).train(batches, config)
    theirs = TorchSide(checkpoint).train(batches, config, ours.regions)
    if not np.isfinite([*ours.losses, *theirs.losses]).all():
        raise Failure("the loss is not finite: the checkpoint cannot be trained on these images")
    before = torch_state(checkpoint.variables, checkpoint.model)
    errors = {
        name: _squares(ours.state[name], theirs.state[name], before[name])
        for name in before
        if not name.endswith("num_batches_tracked")  # we do not count
    }
    prefix = TRUNK_PREFIXES[checkpoint.model.name]
    pairs = zip(ours.regions, theirs.regions, strict=True)
    distances = [box_distances(a, b) for a, b in pairs]
    return {
        "steps": [
            {"jax": a, "torch": b, "relative": ratio(abs(a - b), abs(b))}
            for a, b in zip(ours.losses, theirs.losses, strict=True)
        ],
        "boxes": compare_boxes(np.concatenate(distances)) if distances else None,
        "groups": {
            group: _moved_apart(
                [e for name, e in errors.items() if group_of(name, prefix) == group]
            )
            for group in TRAINING_BOUNDS
            if group != "losses"
        },
        "worst": sorted(
            ({"name": name, "relative": _moved_apart([pair])} for name, pair in errors.items()),
            key=lambda row: -row["relative"],
        )[:5],
    }


def training_bound(what: str, steps: int) -> float:
    """The largest error of a key of `TRAINING_BOUNDS` that rounding explains after `steps`."""
    first, last = TRAINING_BOUNDS[what]
    growth = GROWTH_OF_A_STEP ** min(steps - 1, 9)  # which is beyond every `last`, and finite
    return min(first * growth, last)


def group_of(name: str, trunk_prefix: str) -> str:
    """The group of a tensor of the reference by its name: trunk, head or statistics."""
    if name.endswith(("running_mean", "running_var")):
        return "statistics"
    return "trunk" if name.startswith(trunk_prefix) else "head"


def _squares(ours: np.ndarray, theirs: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Squared norms of the difference and of the movement."""
    ours, theirs, before = (array.astype(np.float64) for array in (ours, theirs, before))
    return float(np.sum((ours - theirs) ** 2)), float(np.sum((theirs - before) ** 2))


def _moved_apart(squares: Sequence[tuple[float, float]]) -> float:
    apart, moved = np.sum(squares, axis=0)
    return ratio(math.sqrt(apart), math.sqrt(moved))


# --- the verdict ---


def verify(
    checkpoint: Checkpoint, photos: Photos, batch_size: int, train_steps: int = 0
) -> dict[str, Any]:
    """Everything that is known of the two sides' agreement, ready for JSON.

    `checks` lists what must hold, and `passed` is whether all of it does.

    Raises:
        UsageError: the classes of photos and checkpoint differ, or training needs labels.
        Failure: an image cannot be read, or outputs are not finite.
    """
    labels = in_order_of(checkpoint.class_names, photos)
    if train_steps and labels is None:
        raise UsageError("--train-steps needs a whole model and a prepared set with labels")
    differences, ours, theirs = run_both(checkpoint, photos, batch_size)
    packages = ("jax", "flax", "torch", "numpy")
    result: dict[str, Any] = {
        "checkpoint": checkpoint.name,
        "model": checkpoint.model.to_dict(),
        "photos": {"name": photos.name, "count": len(photos), "size": checkpoint.image_size},
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "errors": {name: difference.as_dict() for name, difference in differences.items()},
    }
    if "logits" in ours:
        result |= compare_outputs(ours, theirs)
    if "logits" in ours and labels is not None:
        result["average_precision"] = compare_average_precision(
            ours["logits"], theirs["logits"], labels, checkpoint.class_names
        )
    if train_steps:
        assert labels is not None
        result["training"] = compare_training(checkpoint, photos, labels, train_steps, batch_size)
    result["checks"] = checks(result)
    return result | {"passed": all(check["passed"] for check in result["checks"])}


def compare_outputs(ours: Arrays, theirs: Arrays) -> dict[str, Any]:
    """Scores, and where there are any, boxes and the groups of the labels."""
    everywhere = agree = np.ones(len(ours["logits"]), bool)
    result: dict[str, Any] = {}
    if "boxes" in ours:
        distances = box_distances(ours, theirs)
        agree = (distances == 0).all(axis=1)
        result["boxes"] = compare_boxes(distances)
    if "group_assignment" in ours:
        groups = (side["group_assignment"].argmax(axis=1) for side in (ours, theirs))
        result["groups"] = {"labels_in_the_same_group": float(np.mean(np.equal(*groups)))}
    result["scores"] = compare_scores(ours, theirs, everywhere)
    result["scores_where_boxes_agree"] = compare_scores(ours, theirs, agree)
    return result


def checks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must hold of the other entries of `verify`'s result: name, value, bound, passed."""
    found = []

    def at_most(name: str, value: float, bound: float) -> None:
        found.append({"name": name, "value": value, "at_most": bound, "passed": value <= bound})

    if "scores" not in result:
        worst = max(stage["relative"] for stage in result["errors"].values())
        at_most("relative error of the stages", worst, MAX_STAGE_ERROR)
    else:
        worst = result["scores_where_boxes_agree"]["scores"]
        at_most("error of the scores", worst, MAX_SCORE_ERROR)
    if "boxes" in result:
        other = 1 - result["boxes"]["identical"]
        at_most("share of boxes that differ", other, round(1 - MIN_IDENTICAL_BOXES, 9))
    if result.get("average_precision"):
        gap = abs(result["average_precision"]["difference"])
        at_most("difference of mAP", gap, MAX_MAP_DIFFERENCE)
    if "training" in result:
        training = result["training"]
        losses = [step["relative"] for step in training["steps"]]
        worst = max(range(len(losses)), key=lambda k: losses[k] / training_bound("losses", k + 1))
        bound = training_bound("losses", worst + 1)
        at_most(f"relative error of the loss of step {worst + 1}", losses[worst], bound)
        for group, error in training["groups"].items():
            at_most(f"training, {group}", error, training_bound(group, len(losses)))
    return found


# --- for people ---


def summary(result: Mapping[str, Any]) -> str:
    """The table that is printed."""
    photos = result["photos"]
    lines = [
        f"{result['checkpoint']}: {photos['count']} photos of {photos['name']} at "
        f"{photos['size']} px, JAX against PyTorch",
        "",
        f"{'':26}{'absolute':>12}{'relative':>12}",
    ]
    for name, error in result["errors"].items():
        lines.append(f"{name:26}{error['absolute']:12.2e}{error['relative']:12.2e}")
    lines += [*_score_lines(result), *_training_lines(result), ""]
    for check in result["checks"]:
        verdict = "pass" if check["passed"] else "FAIL"
        lines.append(
            f"{verdict}  {check['name']}: {check['value']:.2e}, at most {check['at_most']:g}"
        )
    return "\n".join(lines)


def _score_lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, where in (
        ("scores", "all images"),
        ("scores_where_boxes_agree", "where all boxes agree"),
    ):
        if key in result:
            values = dict(result[key])
            lines.append(f"probabilities, {where} ({values.pop('images')}):")
            lines += [f"  {name:24}{value:12.2e}" for name, value in values.items()]
    if boxes := result.get("boxes"):
        lines.append(
            f"boxes: {boxes['identical']:.2%} of {boxes['count']} identical, "
            f"{boxes['within_one_pixel']:.2%} within one pixel"
        )
    if groups := result.get("groups"):
        lines.append(f"labels in the same group: {groups['labels_in_the_same_group']:.2%}")
    if ap := result.get("average_precision"):
        lines.append(
            f"mAP: jax {ap['jax']:.3f}, torch {ap['torch']:.3f}, difference {ap['difference']:+.4f}"
        )
        worst = max(ap["classes"], key=lambda row: abs(row["difference"]))
        lines.append(f"largest difference of an AP: {worst['difference']:+.4f} ({worst['name']})")
    return ["", *lines] if lines else []


def _training_lines(result: Mapping[str, Any]) -> list[str]:
    if "training" not in result:
        return []
    training = result["training"]
    lines = ["", f"{'training':10}{'loss, jax':>14}{'loss, torch':>14}{'relative':>12}"]
    for k, step in enumerate(training["steps"], start=1):
        row = f"{step['jax']:14.6f}{step['torch']:14.6f}{step['relative']:12.2e}"
        lines.append(f"{f'step {k}':10}{row}")
    lines.append("apart at the end, of how far they moved:")
    lines += [f"  {group:24}{value:12.2e}" for group, value in training["groups"].items()]
    if boxes := training["boxes"]:
        own = f"{boxes['identical']:.2%}"
        lines.append(f"both looked at JAX's boxes; PyTorch alone would have chosen {own} of them")
    return lines


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the page; it is one file that loads nothing."""
    filters = {"error": lambda value: f"{value:.1e}" if value else "0", "place": place_on_chart}
    template = page_template(Path(__file__).with_name("verify.html.jinja"), filters)
    relative = {name: error["relative"] for name, error in result["errors"].items()}
    page = template.render(result=result, relative=relative, decades=CHART_DECADES)
    write_text(path, page)


def place_on_chart(error: float) -> float:
    """Where the charts, logarithmic over `CHART_DECADES`, have an error: percent of their width."""
    low, high = CHART_DECADES
    decade = math.log10(error) if error > 0 else low
    return 100 * (min(max(decade, low), high) - low) / (high - low)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


_positive.__name__ = "positive number"  # as argparse calls it in its message


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="weight_conversion.verify", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", metavar="X", type=Path, required=True, help="a file, a folder or a run")
    add("--data", metavar="DIR", type=Path, required=True, help="a prepared set, or photos")
    add("--split", metavar="NAME", help="of a prepared set; default: test")
    add("--images", metavar="N", type=_positive, help="the first N alone; default: all")
    add("--image-size", metavar="S", type=_positive, help="default: the checkpoint's, else 224")
    add("--batch-size", metavar="B", type=_positive, default=8, help="default: 8")
    add("--train-steps", metavar="N", type=_positive, default=0, help="also train, N steps")
    add("--out", metavar="DIR", type=Path, default=Path("verify"), help="default: verify")
    return parser.parse_args(arguments)


def _verify(options: argparse.Namespace) -> None:
    """Does what the command line asks for; a bound that is missed is a Failure."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("verifying needs PyTorch: pip install -e '.[torch]'")
    checkpoint = read_checkpoint(options.checkpoint, options.image_size)
    seen = checkpoint.upright, checkpoint.value_range
    photos = open_photos(options.data, options.split, options.images, *seen)
    result = verify(checkpoint, photos, options.batch_size, options.train_steps)
    print(summary(result))
    try:
        write_text(options.out / "verify.json", json.dumps(result, indent=1, allow_nan=False))
        write_page(options.out / "verify.html", result)
    except OSError as error:
        raise UsageError(f"{options.out} cannot be written: {error.strerror}") from error
    print(f"wrote {options.out / 'verify.json'} and {options.out / 'verify.html'}")
    if missed := [check["name"] for check in result["checks"] if not check["passed"]]:
        raise Failure(f"JAX and PyTorch disagree: {', '.join(missed)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    return exit_code(lambda: _verify(_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

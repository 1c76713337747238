"""`--mode diagnose`: why a model fails on a split, from its score file and the prepared set.

No model is run. Written to `<workdir>/diagnosis/`: `index.html`, a page to look at, and the same
figures in `diagnosis.json`.
"""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlic_jax.command_line import mode_command
from mlic_jax.data import sources
from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.data.objects import Objects, read_objects
from mlic_jax.data.options import DataOptions
from mlic_jax.data.records import Split
from mlic_jax.diagnose import causes, figures
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from mlic_jax.metrics.costs import average_precision_costs
from mlic_jax.metrics.localisation import localise, summarise_looks
from mlic_jax.metrics.operating_point import OperatingPoint, expected_calibration_error
from mlic_jax.metrics.precision_recall import predicted_labels, sigmoid
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.reports import diagnosis as page
from mlic_jax.runtime.checkpoint import read_metadata
from mlic_jax.scores.files import Scores

FOLDER, FIGURES, DOUBTFUL = "diagnosis", "diagnosis.json", "doubtful.csv"
COSTLIEST = 12  # photos that cost most, with their pictures
DOUBTFUL_SHOWN = 20


def diagnose_run(config: ConfigDict, workdir: Path, checkpoint: Path) -> dict[str, Any]:
    """Diagnoses what a run said of the split in the role `test`, and writes the page and figures.

    Args:
        config: of the run.
        workdir: of its score file `scores_<split>.npz`; the page is written there too.
        checkpoint: whose operating point tells which labels count as predicted, if it has one.

    Raises:
        UsageError: there is no score file, it is of other images, or no label is known.
        Failure: the score file or the set is damaged.
    """
    data, workdir = DataOptions.of(config.data), Path(workdir)
    scores = read_scores(workdir, data.splits["test"])
    splits = sources.open_splits(data)
    split = splits["test"]
    check_same_split(scores, split, workdir)
    metadata = read_metadata(checkpoint)
    stored = metadata.get("operating_point")
    point = OperatingPoint.from_dict(stored) if stored else None
    objects = read_objects(split, scores.image_size, data.fit)
    protocol = PROTOCOLS[config.eval.protocol]
    found = diagnose(scores, splits["train"].labels(), objects, point, protocol.threshold)
    if objects is None:
        found["no_boxes"] = said_of_no_boxes(data, split)
    found["doubtful"] = read_doubtful(workdir / FOLDER / DOUBTFUL)
    folder = workdir / FOLDER
    figures_text = json.dumps(found, indent=1, allow_nan=False)
    write_text(folder / FIGURES, figures_text)
    written = page.write_page(
        folder / "index.html",
        found,
        scores,
        predict(scores.logits, point, protocol.threshold),
        lambda i: data.fit.square(split.decode(split[i]), scores.image_size),
        None if objects is None else objects.__getitem__,
    )
    print(said(found))
    print(f"page and figures: {written}, {folder / FIGURES}")
    return found


def said_of_no_boxes(data: DataOptions, split: Split) -> str:
    """What there is to say, and to do, of a set without boxes of objects."""
    said = f"the set {split.name} has no boxes of objects: what is made from them is left out. "
    if data.source == "yolo":
        return said + (
            f"If an earlier version prepared it, delete {split.directory} and prepare it again"
        )
    return said + (
        "COCO, VOC and generated scenes have them, and own data in the formats of COCO, VOC and "
        "YOLO"
    )


def read_scores(workdir: Path, split: str) -> Scores:
    """The score file of a split in a run's folder.

    Raises:
        UsageError: there is none, or no label in it is known.
        Failure: it is damaged.
    """
    path = workdir / f"scores_{split}.npz"
    if not path.is_file():
        raise UsageError(f"no score file {path}: {evaluate_command(workdir)} writes it")
    scores = Scores.load(path)
    if not np.isfinite(scores.logits).all():
        raise Failure(f"{path}: its scores are not finite; the checkpoint is damaged")
    if not scores.labels.any():
        raise UsageError(f"{path}: no label of the split is known, so none can be wrong")
    return scores


def evaluate_command(workdir: Path) -> str:
    """What writes the score file of a run's folder, as `mlic` or the module takes it."""
    return mode_command("evaluate", "--workdir", workdir)


def check_same_split(scores: Scores, split: Split, workdir: Path) -> None:
    """Raises UsageError unless the scores are of the images, classes and labels of a split."""
    ids = [split.image_id(i) for i in range(len(split))]
    for what, one, other in (
        ("classes", scores.class_names.tolist(), list(split.class_names)),
        ("images", scores.image_ids.tolist(), ids),
        ("labels", scores.labels.tolist(), split.labels().tolist()),
    ):
        if one != other:
            raise UsageError(
                f"the set {split.name} {split.split} has other {what} than the score file of "
                f"{workdir}: {evaluate_command(workdir)} renews it"
            )


def predict(logits: np.ndarray, point: OperatingPoint | None, threshold: float) -> np.ndarray:
    """Bool [N, C]: which labels count as predicted, at the operating point if there is one."""
    return predicted_labels(logits, threshold) if point is None else point.predicted(logits)


def diagnose(
    scores: Scores,
    train_labels: np.ndarray,
    objects: list[Objects] | None,
    point: OperatingPoint | None,
    threshold: float,
) -> dict[str, Any]:
    """All figures of a diagnosis, as JSON holds them; the labels that are 0 do not count.

    Args:
        scores: of N images.
        train_labels: [M, C], of the split that was trained on.
        objects: of each of the N images its true boxes in the square; None: the set has none.
        point: where labels count as predicted; None: at the probability `threshold`.
    """
    names, ids = scores.class_names.tolist(), scores.image_ids.tolist()
    labels = resolve_unknown(scores.labels, "ignore")
    predicted = {name: predict(of, point, threshold) for name, of in scores.streams.items()}
    final = predicted["final"]
    traits = causes.find_traits(labels, train_labels, objects, scores.image_size)
    usual = causes.find_companions(train_labels)
    found: dict[str, Any] = {
        "set": scores.set_name,
        "split": scores.split,
        "images": len(labels),
        "class_names": names,
        "predicted_at": f"probability {threshold:g}" if point is None else point.rule,
        "errors": causes.errors_by_cause(final, labels, traits, names),
        "companions": {
            name: [names[d] for d in np.flatnonzero(usual[c])]
            for c, name in enumerate(names)
            if usual[c].any()
        },
        "by_number_of_labels": figures.by_number_of_labels(final, labels),
        "confidence": confidence(scores, final, point),
        "costliest": figures.costliest(
            average_precision_costs(scores.logits, labels), labels, ids, names, COSTLIEST
        ),
        "second_look": figures.second_look(scores.streams, predicted, labels, ids, names),
    }
    if objects is not None:
        of_model = (scores.boxes, scores.box_classes, scores.class_maps)
        looks = localise(labels, objects, scores.image_size, *of_model)
        found["recall_by_size"] = figures.recall_by_size(looks, final, names)
        if scores.boxes is not None:
            found["localisation"] = summarise_looks(looks, names)
    return found


def confidence(
    scores: Scores, predicted: np.ndarray, point: OperatingPoint | None
) -> dict[str, Any]:
    """What is promised by class, `as_it_is` and `calibrated` if there is an operating point.

    Of each the expected calibration `error` in percent, and `by_class` (see `figures.confidence`).
    """
    kinds = {"as_it_is": sigmoid(scores.logits)}
    if point is not None:
        kinds["calibrated"] = point.probabilities(scores.logits)
    return {
        kind: {
            "error": expected_calibration_error(of, scores.labels),
            "by_class": figures.confidence(
                of, predicted, scores.labels, scores.class_names.tolist()
            ),
        }
        for kind, of in kinds.items()
    }


def read_doubtful(path: Path) -> dict[str, Any] | None:
    """The heading and the first rows of a list of doubtful labels; None where there is none."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="", errors="replace") as file:
            rows = list(itertools.islice(csv.reader(file), DOUBTFUL_SHOWN + 1))
    except csv.Error as error:
        print(f"{path} is left out, it is no table: {error}")
        return None
    return {"columns": rows[0], "rows": rows[1:]} if len(rows) > 1 else None


def said(found: dict[str, Any]) -> str:
    """A few lines for the person who waits."""
    errors = found["errors"]
    lines = [
        f"{found['set']} {found['split']}: {found['images']} images, predicted at "
        f"{found['predicted_at']}"
    ]
    for kind in ("missed", "wrong"):
        of = errors[kind]
        traits = [
            f"{name.replace('_', ' ')} {count['errors']}"
            for name, count in of["causes"].items()
            if count["errors"]
        ]
        lines.append(
            f"  {kind}: {of['errors']} of {of['labels']} ({', '.join(traits) or 'no trait'})"
        )
    if look := found["second_look"]:
        lines.append(f"  second look: {look['gained']} labels gained, {look['lost']} lost")
    if "no_boxes" in found:
        lines.append(f"  {found['no_boxes']}")
    return "\n".join(lines)

"""How far the outputs of both sides are apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from mlic_jax.errors import Failure
from mlic_jax.metrics.average_precision import average_precision, mean_average_precision
from mlic_jax.metrics.precision_recall import sigmoid
from weight_conversion.sides import (
    Arrays,
    Checkpoint,
    JaxSide,
    TorchSide,
)
from weight_conversion.verify.photos import Photos

# The outputs that begin with the axis of the images.
OF_AN_IMAGE = {"logits", "global_logits", "local_logits", "boxes", "box_classes"}


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
            pixels = photos.pixels(rows, checkpoint.image_size, checkpoint.fit)
            images = checkpoint.normalise(pixels)
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

"""A bundle proves itself: what a runtime says of its reference photos beside what is written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.errors import Failure, UsageError
from mlic_jax.export import bundle
from mlic_jax.export.labelling import Source
from mlic_jax.files import json_text
from mlic_jax.files.atomic import write_text


@dataclass(frozen=True)
class Agreement:
    """How far a runtime is from what is written of the reference photos.

    Attributes:
        score_error: the greatest difference of a probability.
        boxes, labels: of how many photos they are the same.
        photos: how many there are.
    """

    runtime: str
    score_error: float
    boxes: int | None
    labels: int
    photos: int

    def problem(self, tolerance: dict[str, Any]) -> str | None:
        """What is wrong, if anything is."""
        if not self.score_error <= tolerance["scores"]:
            return (
                f"{self.runtime} differs by {self.score_error:.2g} in a probability; "
                f"{tolerance['scores']:g} is allowed"
            )
        for what, same in (("labels", self.labels), ("boxes", self.boxes)):
            if same is not None and same < self.photos - tolerance[what]:
                other = f"{self.photos - same} of {self.photos} photos"
                return f"{self.runtime} has other {what} on {other}"
        return None

    def __str__(self) -> str:
        boxes = "" if self.boxes is None else f", boxes the same on {self.boxes} of {self.photos}"
        return (
            f"{self.runtime}: probabilities within {self.score_error:.1e}, labels the same on "
            f"{self.labels} of {self.photos} photos{boxes}"
        )


def write_references(folder: Path, description: dict[str, Any], runtime: bundle.Runtime) -> None:
    """Writes what `runtime` says of the reference photos, which others are held to."""
    _, pixels = bundle.reference_pixels(folder, description)
    outputs = bundle.run_in_batches(runtime, pixels, bundle.batch_of(description))
    kept = ("probabilities", "present", "boxes", "box_classes", "looked_at")
    said = {name: outputs[name].tolist() for name in kept if name in outputs}
    write_text(folder / bundle.REFERENCES, json.dumps(said))


def verify(
    folder: Path, description: dict[str, Any], runtime: str, checkpoint: str | None = None
) -> Agreement:
    """Runs the reference photos.

    Args:
        folder, description: the bundle.
        runtime: one of `names.RUNTIMES`.
        checkpoint: of which `jax` runs the model.

    Raises:
        UsageError: see `bundle.open_runtime`; or the checkpoint is of another model.
        Failure: a photo or the model cannot be read, the model cannot be run, or an output is
            missing or of another shape than what is written.
    """
    _, pixels = bundle.reference_pixels(folder, description)
    if checkpoint is None:
        run = bundle.open_runtime(folder, description, runtime)
    else:
        run = _run_of_checkpoint(checkpoint, folder, description)
    found = bundle.run_in_batches(run, pixels, bundle.batch_of(description))
    return compare(folder, found, runtime)


def _run_of_checkpoint(
    checkpoint: str, folder: Path, description: dict[str, Any]
) -> bundle.Runtime:
    """The model that a bundle was exported from, by its own code."""
    how, precision = description["preprocessing"], description.get("precision")
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    source = Source(checkpoint, dtype, how["grid"])
    if (list(source.class_names), source.size) != (description["class_names"], how["size"]):
        raise UsageError(
            f"{folder} was not exported from {checkpoint}, which has other labels or another size"
        )
    return source.run


def compare(folder: Path, found: dict[str, np.ndarray], runtime: str) -> Agreement:
    """Outputs beside the written ones.

    Regions are of the likeliest labels, so where two of them change places so may their regions:
    a photo has the same boxes if each label has the same.

    Raises:
        Failure: see `verify`.
    """
    expected = _written(folder / bundle.REFERENCES)
    if missing := set(expected) - set(found):
        raise Failure(f"{runtime} does not give {', '.join(sorted(missing))}")
    for name, of in expected.items():
        if of.shape != found[name].shape:
            raise Failure(
                f"{runtime} gives {name} of shape {found[name].shape}, and {bundle.REFERENCES} has "
                f"{of.shape}"
            )
    error = np.abs(found["probabilities"] - expected["probabilities"]).max()
    labels = (found["present"] == expected["present"]).all(axis=1)
    boxes = None
    if "boxes" in expected:
        boxes = sum(_regions(found, row) == _regions(expected, row) for row in range(len(labels)))
    return Agreement(runtime, float(error), boxes, int(labels.sum()), len(labels))


def _written(path: Path) -> dict[str, np.ndarray]:
    """What is written of the reference photos; raises Failure where that is no arrays."""
    said = json_text.read(path)
    try:
        arrays = {name: np.array(of) for name, of in said.items()}
        if all(of.dtype.kind in "biuf" for of in arrays.values()) and (
            {"probabilities", "present"} <= set(arrays)
            and ("boxes" in arrays) == ("box_classes" in arrays)
        ):
            return arrays
    except (AttributeError, ValueError, OverflowError):
        pass
    raise Failure(f"{path} is not as --mode export writes it")


def _regions(outputs: dict[str, np.ndarray], row: int) -> dict[int, list[int]]:
    classes, boxes = outputs["box_classes"][row], outputs["boxes"][row]
    return {int(c): box.tolist() for c, box in zip(classes, boxes, strict=True)}

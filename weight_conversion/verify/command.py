"""Runs one checkpoint through Flax and through plain PyTorch, and says how far they are apart.

    python -m weight_conversion.verify --checkpoint X --data DIR [--split NAME] [--images N]
        [--train-steps N] [--batch-size B] [--image-size S] [--weights WHICH] [--out DIR]
        [--top N [--names FILE]]

X is a PyTorch or safetensors file, a converted checkpoint or a run. DIR is a prepared set
(`prepared/<name>`), or any folder of photos, which has no labels and so no mAP. Both frameworks get
the same decoded, resized and normalised pixels, in float32, ours with the highest matmul precision.
PyTorch runs `weight_conversion.torch_reference`, which shares no code with our models. A table is
printed, and `verify.json` and `verify.html` are written. The exit code is 1 where one of the bounds
below is missed, 2 for a wrong request.

`--top 5` also prints the five likeliest classes of every photo, of an ImageNet trunk that came with
its classifier: their indices, and their names where FILE has them, a line each.

A region whose edge falls on another pixel gives the second look another crop, so its local scores
differ for a legitimate reason. Regions have a bound of their own; that of the scores is for the
images all of whose regions agree, and the errors over all images stand beside it.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlic_jax.command_line import Parser, exit_code
from mlic_jax.errors import Failure, UsageError
from mlic_jax.files.atomic import write_text
from weight_conversion.sides import (
    Checkpoint,
    read_checkpoint,
)
from weight_conversion.verify.differences import (
    compare_average_precision,
    compare_outputs,
    run_both,
)
from weight_conversion.verify.page import summary, write_page
from weight_conversion.verify.photos import Photos, in_order_of, open_photos
from weight_conversion.verify.top import read_names, top_classes
from weight_conversion.verify.training import compare_training, training_bound

# In float32 with the highest matmul precision two implementations of one model differ by rounding
# alone. What is left after a hundred layers stays well within these.
MAX_STAGE_ERROR = 1e-4  # of a trunk, relative to the largest value of the stage
MAX_SCORE_ERROR = 1e-4  # probabilities
MIN_IDENTICAL_BOXES = 0.99
MAX_MAP_DIFFERENCE = 0.05  # percentage points


# --- the photos ---


# --- how far they are apart ---


# --- training ---


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
        "model": dataclasses.asdict(checkpoint.model),
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


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


_positive.__name__ = "positive number"  # as argparse calls it in its message


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="weight_conversion.verify", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", metavar="X", type=Path, required=True, help="a file, a folder or a run")
    add("--weights", metavar="WHICH", help="of several in a file: raw, ema or a place")
    add("--data", metavar="DIR", type=Path, required=True, help="a prepared set, or photos")
    add("--split", metavar="NAME", help="of a prepared set; default: test")
    add("--images", metavar="N", type=_positive, help="the first N alone; default: all")
    add("--image-size", metavar="S", type=_positive, help="default: the checkpoint's, else 224")
    add("--batch-size", metavar="B", type=_positive, default=8, help="default: 8")
    add("--train-steps", metavar="N", type=_positive, default=0, help="also train, N steps")
    add("--top", metavar="N", type=_positive, help="print the N likeliest classes of ImageNet")
    add("--names", metavar="FILE", type=Path, help="their names, a line each")
    add("--out", metavar="DIR", type=Path, default=Path("verify"), help="default: verify")
    return parser.parse_args(arguments)


def _verify(options: argparse.Namespace) -> None:
    """Does what the command line asks for; a bound that is missed is a Failure."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("verifying needs PyTorch: pip install -e '.[torch]'")
    checkpoint = read_checkpoint(options.checkpoint, options.image_size, options.weights)
    seen = checkpoint.upright, checkpoint.value_range
    photos = open_photos(options.data, options.split, options.images, *seen)
    if options.names and not options.top:
        raise UsageError("--names is for --top")
    names = read_names(options.names) if options.names else None
    top = {}
    if options.top:
        top["top"] = top_classes(checkpoint, photos, options.batch_size, options.top, names)
    result = top | verify(checkpoint, photos, options.batch_size, options.train_steps)
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

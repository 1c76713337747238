"""A training step with what saves memory: bfloat16 and recomputation, and what they cost.

XLA's CPU backend undoes the recomputation within a step. What the forward pass alone keeps for the
backward pass is therefore measured as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import models
from comparison import Case, Comparison, Sizes, Task
from ml_collections import ConfigDict
from models import Subject

BACKBONE = "resnet{depth}"


def subject(**options: Any) -> Subject:
    """A pooled backbone with options of `config.model`."""

    def recipe(sizes: Sizes) -> ConfigDict:
        return models.recipe(name="pooled", backbone=BACKBONE.format_map(sizes), **options)

    return Subject(recipe, module=lambda *_: None)


def task(what: str, make: Callable) -> Task:
    """All ways to do it."""
    options = {
        "float32": {},
        "bfloat16": {"dtype": "bfloat16"},
        "remat, stage": {"remat": "stage"},
        "remat, block": {"remat": "block"},
    }
    cases = tuple(
        Case(variant, "jax", partial(make, subject(**chosen)))
        for variant, chosen in options.items()
    )
    name = f"ResNet-{{depth}}, {{image_size}} px, {what}"
    return Task(name, subject().inputs, cases, tolerance=0.2)  # bfloat16 rounds


COMPARISON = Comparison(
    title="Training in less memory, pooled",
    sizes={"depth": 50, "image_size": 256, "images": 8, "labels": 20},
    small={"depth": 18, "image_size": 64, "images": 4, "labels": 5},
    tasks=(
        task("train step", models.jax_step),
        task("forward pass and what it keeps", models.jax_kept),
    ),
)

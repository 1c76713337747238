"""A training step with what saves memory: bfloat16 and recomputation, and what they cost."""

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


def case(variant: str, **options: Any) -> Case:
    make: Callable = partial(models.jax_step, subject(**options))
    return Case(variant, "jax", make)


COMPARISON = Comparison(
    title="Training in less memory, pooled",
    sizes={"depth": 50, "image_size": 256, "images": 8, "labels": 20},
    small={"depth": 18, "image_size": 64, "images": 4, "labels": 5},
    tasks=(
        Task(
            "ResNet-{depth}, {image_size} px, train step",
            subject().inputs,
            (
                case("float32"),
                case("bfloat16", dtype="bfloat16"),
                case("remat, stage", remat="stage"),
                case("remat, block", remat="block"),
            ),
            tolerance=0.2,  # bfloat16 rounds
        ),
    ),
)

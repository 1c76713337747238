"""A training step with each of the options that save memory: what they save, and what they cost."""

from collections.abc import Callable
from functools import partial
from typing import Any

import models
from comparison import Case, Comparison, Sizes, Task
from ml_collections import ConfigDict
from models import Subject

BACKBONE = "resnet{depth}"


def subject(accumulation: int = 1, **options: Any) -> Subject:
    """A pooled backbone with options of `config.model`, and with `config.accumulation`."""

    def recipe(sizes: Sizes) -> ConfigDict:
        config = models.recipe(name="pooled", backbone=BACKBONE.format_map(sizes), **options)
        config.accumulation = accumulation
        return config

    return Subject(recipe, module=lambda *_: None)


def case(variant: str, **options: Any) -> Case:
    make: Callable = partial(models.jax_step, subject(**options))
    return Case(variant, "jax", make)


COMPARISON = Comparison(
    title="Training in less memory, pooled",
    sizes={"depth": 50, "image_size": 256, "images": 16, "labels": 20},
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
                case("accumulation of 4", accumulation=4),
            ),
            tolerance=0.2,  # bfloat16 rounds, and a part of a batch has statistics of its own
        ),
    ),
)

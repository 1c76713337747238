"""MSRN whole, on a ResNet: inference and a training step."""

from typing import Any

import models
import numpy as np
from comparison import Comparison, Sizes
from ml_collections import ConfigDict
from models import Subject, Targets

DIMENSIONS = 300  # of a word vector


def recipe(sizes: Sizes) -> ConfigDict:
    return models.recipe(name="msrn", backbone=f"resnet{sizes['depth']}", pool_ratio=0.05)


def label_inputs(sizes: Sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = sizes["labels"]
    return {
        "word_vectors": rng.standard_normal((labels, DIMENSIONS), np.float32),
        "attention_mask": (rng.random((labels, labels)) < 0.05) | np.eye(labels, dtype=bool),
    }


def module(model: ConfigDict, given: dict[str, Any], _: Sizes, tuned: bool) -> Any:
    from torch_tuned import TunedMSRN

    from weight_conversion.torch_reference.msrn import MSRN

    vectors, mask = (given["label_inputs"][name] for name in ("word_vectors", "attention_mask"))
    kind = TunedMSRN if tuned else MSRN
    return kind(model.backbone, vectors, mask.float(), model.pool_ratio)


COMPARISON = Comparison(
    title="MSRN",
    sizes={"depth": 101, "image_size": 448, "images": 4, "labels": 80},
    small={"depth": 18, "image_size": 64, "images": 2, "labels": 20},
    tasks=models.tasks(
        "ResNet-{depth}, {image_size} px",
        Subject(recipe, module, label_inputs),
        released=Targets(inference=2, step=2, peak=3),
        tuned=Targets(),
        tolerance=1e-2,  # through a hundred layers of random weights
    ),
)

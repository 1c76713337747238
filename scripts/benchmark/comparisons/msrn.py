"""MSRN whole, on a ResNet: inference and a training step."""

from typing import Any

import models
import numpy as np
from comparison import Comparison, Sizes
from ml_collections import ConfigDict

DIMENSIONS = 300  # of a word vector


def recipe(sizes: Sizes) -> ConfigDict:
    return models.recipe(name="msrn", backbone=f"resnet{sizes['depth']}", pool_ratio=0.05)


def inputs(sizes: Sizes) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    labels = sizes["labels"]
    label_inputs = {
        "word_vectors": rng.standard_normal((labels, DIMENSIONS), np.float32),
        "attention_mask": (rng.random((labels, labels)) < 0.05) | np.eye(labels, dtype=bool),
    }
    return {
        "batch": models.random_batch(sizes),
        "variables": {"MSRN": models.random_variables(recipe(sizes), sizes, **label_inputs)},
        "label_inputs": label_inputs,
    }


def reference(model: ConfigDict, given: dict[str, Any], _: Sizes) -> Any:
    from weight_conversion.torch_reference.msrn import MSRN

    vectors, mask = (given["label_inputs"][name] for name in ("word_vectors", "attention_mask"))
    return MSRN(model.backbone, vectors, mask.float(), model.pool_ratio)


COMPARISON = Comparison(
    title="MSRN",
    sizes={"depth": 101, "image_size": 448, "images": 8, "labels": 80},
    small={"depth": 18, "image_size": 64, "images": 2, "labels": 20},
    inputs=inputs,
    cases=models.cases("MSRN", recipe, reference),
    tolerance=1e-2,  # through a hundred layers of random weights
)

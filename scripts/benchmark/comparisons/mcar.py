"""MCAR whole, on MobileNetV2 and on a ResNet: inference and a training step."""

from collections.abc import Callable
from typing import Any

import models
from comparison import Comparison, Sizes
from ml_collections import ConfigDict


def on_mobilenet(sizes: Sizes) -> ConfigDict:
    return _recipe("mobilenet_v2", sizes)


def on_resnet(sizes: Sizes) -> ConfigDict:
    return _recipe(f"resnet{sizes['depth']}", sizes)


def _recipe(backbone: str, sizes: Sizes) -> ConfigDict:
    return models.recipe(name="mcar", backbone=backbone, top_n=sizes["regions"])


RECIPES: dict[str, Callable] = {"MobileNetV2": on_mobilenet, "ResNet": on_resnet}


def inputs(sizes: Sizes) -> dict[str, Any]:
    return {
        "batch": models.random_batch(sizes),
        "variables": {
            title: models.random_variables(recipe(sizes), sizes)
            for title, recipe in RECIPES.items()
        },
        "label_inputs": {},
    }


def reference(model: ConfigDict, _: dict[str, Any], sizes: Sizes) -> Any:
    from weight_conversion.torch_reference.mcar import MCAR

    options = {name: model[name] for name in ("pooling", "top_n", "threshold", "width")}
    return MCAR(model.backbone, sizes["labels"], **options)


COMPARISON = Comparison(
    title="MCAR",
    sizes={"depth": 50, "image_size": 256, "images": 8, "labels": 20, "regions": 4},
    small={"depth": 18, "image_size": 64, "images": 2, "labels": 5, "regions": 2},
    inputs=inputs,
    cases=tuple(
        case for title, recipe in RECIPES.items() for case in models.cases(title, recipe, reference)
    ),
    tolerance=1e-3,
)

"""Backbones, one of a family, with the pooled head: inference and a training step.

`--only swin_tiny` measures one of them, and with `--out` the others stay as they were.
"""

import models
from comparison import Comparison
from models import Targets

BACKBONES = (
    "resnet50d",
    "tresnet_m",
    "efficientnet_lite0",
    "efficientnet_b0",
    "convnext_tiny",
    "swin_tiny",
    "vit_small_patch16",
)
COMPILED = ("vit_small_patch16",)  # too: `torch.compile` takes minutes
TUNED = Targets(inference=1.0, step=0.95)

COMPARISON = Comparison(
    title="Backbones",
    sizes={"images": 8, "image_size": 224, "labels": 20},
    small={"images": 2, "image_size": 64, "labels": 5},
    tasks=tuple(
        task
        for backbone in BACKBONES
        for task in models.tasks(
            backbone,
            models.pooled(backbone),
            released=Targets(),
            tuned=TUNED,
            compiled=TUNED if backbone in COMPILED else None,
            tolerance=1e-3,
            measures_memory=False,
        )
    ),
)

"""MCAR whole, on MobileNetV2 and two ResNets at two sizes: inference and a training step."""

import models
from comparison import Comparison, Task
from models import Targets


def tasks(title: str, backbone: str, inference: float, **sizes: int) -> tuple[Task, ...]:
    return models.tasks(
        f"{title}, {{image_size}} px",
        models.mcar(backbone),
        released=Targets(inference, step=1.2),
        tuned=Targets(inference=1.0, step=0.95),
        sizes=sizes,
        tolerance=1e-3,
        measures_memory=False,
    )


COMPARISON = Comparison(
    title="MCAR",
    sizes={"images": 2, "labels": 20, "regions": 4},
    small={"images": 2, "labels": 5, "regions": 2, "image_size": 64, "depth": 18},
    tasks=(
        *tasks("MobileNetV2", "mobilenet_v2", 3, image_size=256),
        *tasks("MobileNetV2", "mobilenet_v2", 3, image_size=448),
        *tasks("ResNet-{depth}", "resnet{depth}", 1.5, depth=50, image_size=256),
        *tasks("ResNet-{depth}", "resnet{depth}", 1.5, depth=50, image_size=448),
        *tasks("ResNet-{depth}", "resnet{depth}", 1.5, depth=101, image_size=256),
        *tasks("ResNet-{depth}", "resnet{depth}", 1.5, depth=101, image_size=448),
    ),
)

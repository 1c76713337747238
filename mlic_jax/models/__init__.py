"""The registry: from the names of a configuration to Linen modules."""

import flax.linen as nn
from ml_collections import ConfigDict

from mlic_jax.errors import UsageError
from mlic_jax.models.mcar import MCAR, POOLINGS
from mlic_jax.models.mobilenet_v2 import MobileNetV2
from mlic_jax.models.regions import LOCALIZERS
from mlic_jax.models.resnet import DEPTHS, ResNet

BACKBONES = (*(f"resnet{depth}" for depth in DEPTHS), "mobilenet_v2")
MODELS = ("mcar",)


def create_backbone(name: str, width: float = 1.0) -> nn.Module:
    """A backbone that maps images `[B, H, W, 3]` to the feature maps of its stages.

    Args:
        name: one of `BACKBONES`.
        width: multiplies the channel counts; 1 is the published network.

    Raises:
        UsageError: the name is unknown or the width is not positive.
    """
    _require_one_of("model.backbone", name, BACKBONES)
    if width <= 0:
        raise UsageError(f"model.width is {width}; it must be positive")
    if name == "mobilenet_v2":
        return MobileNetV2(width=width)
    return ResNet(depth=int(name.removeprefix("resnet")), width=width)


def create_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The model that `config.model` describes, for `num_classes` labels.

    Raises:
        UsageError: an option is unknown or does not fit the number of classes.
    """
    _require_one_of("model.name", config.name, MODELS)
    _require_one_of("model.pooling", config.pooling, tuple(POOLINGS))
    _require_one_of("model.localizer", config.localizer, tuple(LOCALIZERS))
    if not 1 <= config.top_n <= num_classes:
        raise UsageError(
            f"model.top_n is {config.top_n}; it must be 1 to {num_classes}, the number of classes"
        )
    if not 0 < config.threshold < 1:
        raise UsageError(f"model.threshold is {config.threshold}; it must lie between 0 and 1")
    return MCAR(
        features=create_backbone(config.backbone, config.width),
        num_classes=num_classes,
        pooling=config.pooling,
        top_n=config.top_n,
        threshold=config.threshold,
        localizer=config.localizer,
    )


def _require_one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} is {value!r}; known are {', '.join(known)}")

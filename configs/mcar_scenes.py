"""MCAR from random initialisation on generated scenes; no download, minutes on a laptop.

    python -m mlic_jax.main --config configs/mcar_scenes.py --workdir runs/scenes

Measured on two CPU cores, in 1 min 36 s, with seeds 0 to 4: test mAP 93.7 to 95.9, the global
stream alone 94.7 to 96.8, chance 21.8.
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_variant, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """A quarter-width ResNet-10 at 96 px."""
    config = default_config()
    config.epochs = 7
    config.batch_size = 16  # the run is short: many steps are worth more than large ones
    config.model.backbone = "resnet10"
    config.model.width = 0.25
    config.model.top_n = 2
    config.model.threshold = 0.3  # maps of 3 x 3 are coarse: regions with some margin
    config.model.local_size = 64  # about the median region, at less than half the cost of 96
    config.data.source = "scenes"
    config.data.name = "scenes"
    config.data.image_size = 96
    config.augment.jitter = 0.1
    config.loss.label_policy = "ignore"  # of what is mostly hidden, as the protocol's AP does
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-2
    config.optim.weight_decay = 1e-2
    config.optim.multipliers.features = 1.0
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    config.eval.batch_size = 32
    config.eval.top_n = 4  # two are enough to learn from, and faster
    return apply_variant(config, variant)

"""MCAR from random initialisation on generated scenes; no download, minutes on a laptop.

python -m mlic_jax.main --config configs/mcar_scenes.py --workdir runs/scenes
"""

from ml_collections import ConfigDict

from mlic_jax.config import apply_variant, default_config


def get_config(variant: str | None = None) -> ConfigDict:
    """A quarter-width ResNet-18 at 128 px."""
    config = default_config()
    config.epochs = 10
    config.batch_size = 32
    config.model.backbone = "resnet18"
    config.model.width = 0.25
    config.model.top_n = 3
    config.data.source = "scenes"
    config.data.name = "scenes"
    config.data.image_size = 128
    config.optim.learning_rate = 0.1
    config.optim.multipliers.features = 1.0
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    config.eval.batch_size = 32
    return apply_variant(config, variant)

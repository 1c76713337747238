"""What the notebooks share: a recipe that trains within seconds, on generated scenes."""

from ml_collections import ConfigDict

from mlic_jax.config import default_config


def tiny_recipe() -> ConfigDict:
    """A very narrow ResNet-10 at 64 px and two short epochs: enough to see how things go."""
    config = default_config()
    config.epochs = 2
    config.batch_size = 16
    config.model.backbone = "resnet10"
    config.model.width = 0.125
    config.model.top_n = 2
    config.data.source = "scenes"
    config.data.name = "notebook_scenes"
    config.data.scenes_sizes = (96, 32, 32)
    config.data.image_size = 64
    config.optim.name = "adamw"
    config.optim.multipliers.features = 1.0
    config.loss.label_policy = "ignore"
    return config

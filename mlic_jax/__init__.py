"""Multi-label image classification in JAX and Flax."""

from ml_collections import ConfigDict

__version__ = "0.1.0"


def recipe(name: str) -> ConfigDict:
    """The configuration of a recipe by its name or file, as in `mcar_coco:resnet50,448`.

    Raises:
        UsageError: there is no such recipe, or it is not sound.
    """
    from mlic_jax import recipes

    return recipes.load(name)

"""Photos to labels and regions, from a checkpoint alone."""

from mlic_jax.predict.predictor import Predictor

__all__ = ["Predictor"]

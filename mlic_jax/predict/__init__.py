"""Photos to labels and regions, from a checkpoint alone."""

from typing import Any

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # imported when it is asked for: it takes seconds
        from mlic_jax.predict.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

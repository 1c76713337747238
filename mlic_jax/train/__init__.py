"""Training: the loop, to be read from top to bottom, and what it is made of.

From Python:

    from mlic_jax import recipe
    from mlic_jax.train import train

    config = recipe("mcar_scenes")
    config.epochs = 2
    train(config, "runs/scenes")
"""

from typing import Any

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imported when it is asked for: it takes seconds
        from mlic_jax.train.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

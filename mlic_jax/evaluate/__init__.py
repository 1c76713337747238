"""Scores of a split and what they are worth, from checkpoints and from score files.

From Python, of a run and the configuration that it was trained with:

    from mlic_jax import recipe
    from mlic_jax.evaluate import evaluate_run

    evaluate_run(recipe("mcar_scenes"), "runs/scenes")["mAP"]
"""

from typing import Any

__all__ = ["evaluate_run"]


def __getattr__(name: str) -> Any:
    if name == "evaluate_run":  # imported when it is asked for: it takes seconds
        from mlic_jax.evaluate.run import evaluate_run

        return evaluate_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

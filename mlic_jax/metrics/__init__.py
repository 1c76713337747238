"""What scores are worth: NumPy and scikit-learn alone."""

from typing import Any

from mlic_jax.metrics.protocols import PROTOCOLS

__all__ = ["PROTOCOLS", "evaluate_scores"]


def __getattr__(name: str) -> Any:
    # Scikit-learn takes a second to import, and a configuration needs the protocols' names alone.
    if name == "evaluate_scores":
        from mlic_jax.metrics.classification import evaluate_scores

        return evaluate_scores
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

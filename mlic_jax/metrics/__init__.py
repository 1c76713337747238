"""What scores are worth: NumPy and scikit-learn alone."""

from mlic_jax.metrics.classification import evaluate_scores
from mlic_jax.metrics.protocols import PROTOCOLS

__all__ = ["PROTOCOLS", "evaluate_scores"]

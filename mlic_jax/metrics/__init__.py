"""What scores are worth: NumPy and scikit-learn alone."""

from mlic_jax.metrics.classification import PROTOCOLS, evaluate_scores

__all__ = ["PROTOCOLS", "evaluate_scores"]

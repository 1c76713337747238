"""What an unknown or difficult label (0) counts as, in losses and in metrics alike."""

from typing import Any, Literal, TypeVar, get_args

from mlic_jax.names import require_one_of

LabelPolicy = Literal["as_positive", "as_negative", "ignore"]
POLICIES = get_args(LabelPolicy)

Array = TypeVar("Array", bound=Any)  # NumPy's or JAX's


def resolve_unknown(labels: Array, policy: LabelPolicy) -> Array:
    """Ternary labels int8 `[...]` with 0 (unknown) replaced as the policy says.

    What is still 0 afterwards (`ignore`) must move neither a gradient nor a metric.

    Raises:
        UsageError: the policy is unknown.
    """
    require_one_of("label policy", policy, POLICIES)
    value = {"as_positive": 1, "as_negative": -1, "ignore": 0}[policy]
    return labels + (labels == 0).astype(labels.dtype) * value

"""The precision of sums, statistics and scores: float32, or that of the arrays where it is higher.

So a model in bfloat16 loses nothing where it matters, and one in float64 is a reference for the
others. And the precision of products: an accelerator multiplies float32 in fewer bits unless it is
told otherwise (docs/platforms.md). Classifiers, localisation, crops and the label graph always tell
it; for all else `in_precision` does.
"""

from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from mlic_jax.models.arrays import Float32Or64


def in_precision(precision: str, training: bool) -> AbstractContextManager[Any]:
    """Inside, what is traced has a precision of `names.PRECISIONS`.

    To be taken inside the function that is traced, around the model's application, and where there
    is one around `jax.grad`: the gradients are traced after what they are of.

    Args:
        precision: `config.model.precision`.
        training: for a step of training, and not for a result.
    """
    if precision == "auto":
        precision = "default" if training else "highest"
    return jax.default_matmul_precision(precision)


def at_least_float32(x: Float[Array, "*axes"]) -> Float32Or64[Array, "*axes"]:
    """`x` in float32, or as it is where it is float64."""
    return x.astype(np.promote_types(x.dtype, np.float32))

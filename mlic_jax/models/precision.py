"""The precision of sums, statistics and scores: float32, or that of the arrays where it is higher.

So a model in bfloat16 loses nothing where it matters, and one in float64 is a reference for the
others.
"""

import jax
import numpy as np


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is float64."""
    return x.astype(np.promote_types(x.dtype, np.float32))

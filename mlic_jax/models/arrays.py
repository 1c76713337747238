"""Types of arrays that many signatures share, and what the names of axes in all of them mean.

B images (the rows of a batch), H W their pixels or the positions of a map, h w those of another
map, F G features before and after, C labels, K groups of labels or of rows, N regions of an image.
An axis named twice in a signature has one size; the tests check that, and every dtype.

`Array` is JAX's, traced or not. What only NumPy computes says `np.ndarray`, what takes either
`AnyArray`.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import AbstractDtype, Array, Bool, Float, Int32, Shaped

if TYPE_CHECKING:
    from typing import Annotated as Float32Or64
else:

    class Float32Or64(AbstractDtype):
        """Where bfloat16 would lose too much, see `precision`; float64 in a reference."""

        dtypes = ("float32", "float64")


__all__ = ["AnyArray", "Float32Or64", "Outputs", "RowMask", "StageMaps"]

AnyArray = Array | np.ndarray

# Which rows of a batch are real: False for padding. Or what `deal_rows` made of that: the group of
# each row, -1 for padding.
RowMask = Bool[Array, " B"] | Int32[Array, " B"]

# What a model says, by name; the model's `__call__` tells the shapes.
Outputs = dict[str, Shaped[Array, "..."]]

# The maps after the stages of a backbone, from the largest to the smallest.
StageMaps = tuple[Float[Array, "B _ _ _"], ...]

"""The order of a checkpoint's classes: what depends on it, and how to change it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from weight_conversion.layouts.msrn import MSRN_BLOCK

# The axes that run over the classes, of MCAR's leaves and of MSRN's.
CLASS_AXES = {
    "params/convclass/kernel": (1,),
    "params/convclass/bias": (0,),
    "params/fc2/kernel": (1,),
    "params/fc2/bias": (0,),
    "unused/W": (0,),
    "unused/B": (0,),
    "label_inputs/word_vectors": (0,),
    "label_inputs/counts": (0, 1),
    "label_inputs/class_counts": (0,),
}
# Its rows are those of class 0, of class 1, ..., then of the groups: MSRN_BLOCK of each.
BLOCKS = "params/fc1/kernel"


def reorder(variables: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Variables of MCAR or MSRN with class `order[i]` at position i.

    Nothing else in them depends on the order: MSRN's label graph takes the classes as a set.
    """
    order = np.asarray(order)
    flat = flatten_dict(dict(variables), keep_empty_nodes=True, sep="/")
    for path, axes in CLASS_AXES.items():
        for axis in axes if path in flat else ():
            flat[path] = np.take(flat[path], order, axis)
    if BLOCKS in flat:
        rows = flat[BLOCKS].reshape(-1, MSRN_BLOCK, flat[BLOCKS].shape[1])
        groups = np.arange(len(order), len(rows))
        flat[BLOCKS] = rows[np.concatenate([order, groups])].reshape(flat[BLOCKS].shape)
    return unflatten_dict(flat, sep="/")

"""Tensors of a checkpoint to our leaves, and back."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlic_jax.errors import Failure, UsageError
from weight_conversion.layouts import LAYOUTS
from weight_conversion.layouts.rules import Layout
from weight_conversion.matching import Match, leaves_of, listing, sizes_of, source_name


def to_flax(tensors: Mapping[str, np.ndarray], matched: Match) -> dict:
    """The variables that `matched` describes, each tensor read once.

    Returns:
      `params` and `batch_stats`, float32; and `unused`, the tensors that nothing reads, unchanged
      and by their names in torch (without `module.`).

    Raises:
      Failure: weights that are not floating point, or hold NaN or infinity; lists them all.
    """
    flat, problems = {}, []
    for target, (name, rule) in matched.filled.items():
        tensor = tensors[name]
        if target.startswith("unused/"):
            flat[target] = np.array(tensor)
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"tensor {name!r} is {tensor.dtype}, not floating point")
        elif not np.isfinite(tensor).all():
            problems.append(f"tensor {name!r} holds NaN or infinity")
        else:
            flat[target] = np.array(rule.ours(tensor), np.float32, order="C")
    if problems:
        raise Failure(listing("unusable weights", problems))
    return {"batch_stats": {}, "unused": {}, **unflatten_dict(flat, sep="/")}


def to_torch(variables: Mapping, arch: str, layout: str = "torchvision") -> dict[str, np.ndarray]:
    """The inverse of `to_flax`: a state_dict of numpy arrays under the names of `layout`.

    It has what `variables` have, so nothing for tensors that are dead in torch where there is no
    collection `unused`; see `with_dead_tensors`. Other collections are no part of it.
    """
    table = _table(arch, layout)
    given = {
        name: dict(variables[name])
        for name in ("params", "batch_stats", "unused")
        if name in variables
    }
    parts: dict[str, dict[int, np.ndarray]] = {}
    for target, array in flatten_dict(given, sep="/").items():
        name, rule = source_name(target, table)
        index = 0 if rule.part is None else rule.part.index
        parts.setdefault(name, {})[index] = rule.theirs(np.asarray(array))
    return {
        name: np.concatenate([of[index] for index in sorted(of)]) if len(of) > 1 else of[0].copy()
        for name, of in parts.items()
    }


def with_dead_tensors(
    state: Mapping[str, np.ndarray], arch: str, layout: str
) -> dict[str, np.ndarray]:
    """`state` and zeros for what nothing reads but torch's `load_state_dict` asks for.

    Those are the step counts of batch normalisation (int64) and, in MSRN, the modules out of use.
    """
    table = _table(arch, layout)
    sizes = sizes_of({name: array.shape for name, array in state.items()}, arch)
    zeros = {}
    for target, shape in leaves_of(table, arch, sizes).dead.items():
        name = target.removeprefix("unused/")
        counts = name.endswith("num_batches_tracked")
        zeros[name] = np.zeros(shape, np.int64 if counts else np.float32)
    return zeros | dict(state)


def _table(arch: str, layout: str) -> Layout:
    for table in LAYOUTS:
        if table.name == layout and arch in table.archs:
            return table
    raise UsageError(f"there are no {layout} names of {arch}, so no PyTorch model to read it")

"""Tensors of a checkpoint to our leaves, and back."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlic_jax.errors import Failure, UsageError
from mlic_jax.models.backbones.swin import resized
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
    constants = matched.layout.constants(matched.arch)
    for target, (name, rule) in matched.filled.items():
        tensor, shape = tensors[name], matched.resized.get(target)
        if shape is not None and name in constants:
            flat[target] = constants[name]
        elif target.startswith("unused/"):
            flat[target] = np.array(rule.ours(tensor))
            is_constant = name in constants and rule.part is None
            if is_constant and matched.layout.is_other(name, tensors, constants[name]):
                problems.append(f"tensor {name!r} is not what {matched.arch} has there")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"tensor {name!r} is {tensor.dtype}, not floating point")
        elif not np.isfinite(tensor).all():
            problems.append(f"tensor {name!r} holds NaN or infinity")
        else:
            ours = np.array(rule.ours(tensor), np.float32, order="C")
            flat[target] = ours if shape is None else resized(ours, shape[0])
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
    parts: dict[str, list[np.ndarray | None]] = {}
    for target, array in flatten_dict(given, sep="/").items():
        name, rule = source_name(target, table)
        index, count = rule.part or (0, 1)
        parts.setdefault(name, [None] * count)[index] = rule.theirs(np.asarray(array))
    # In C's order, for a file is written from the memory as it lies.
    return {name: np.array(_joined(of), order="C") for name, of in parts.items()}


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray:
    """A tensor of its parts, with zeros for those that nothing reads, and that so are not there."""
    found = [part for part in parts if part is not None]
    if len(parts) == 1:
        return found[0]
    return np.concatenate([np.zeros_like(found[0]) if part is None else part for part in parts])


def with_dead_tensors(
    state: Mapping[str, np.ndarray], arch: str, layout: str
) -> dict[str, np.ndarray]:
    """`state` and what nothing reads but torch's `load_state_dict` asks for.

    Zeros for the step counts of batch normalisation (int64) and, in MSRN, the modules out of use;
    and the constants of a network.
    """
    table = _table(arch, layout)
    sizes = sizes_of({name: array.shape for name, array in state.items()}, arch)
    zeros = {}
    for target, shape in leaves_of(table, arch, sizes).dead.items():
        name = target.removeprefix("unused/")
        counts = name.endswith("num_batches_tracked")
        zeros[name] = np.zeros(shape, np.int64 if counts else np.float32)
    return zeros | table.constants(arch) | dict(state)


def _table(arch: str, layout: str) -> Layout:
    for table in LAYOUTS:
        if table.name == layout and arch in table.archs:
            return table
    raise UsageError(f"there are no {layout} names of {arch}, so no PyTorch model to read it")

"""One mesh over all devices, and how state and batches lie on it."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlic_jax.errors import UsageError
from mlic_jax.runtime import profiling

# The axis of the mesh, along which batches lie.
ROWS = "data"
BY_ROWS, EVERYWHERE = PartitionSpec(ROWS), PartitionSpec()
BATCHES_AHEAD = 2


def create_mesh() -> Mesh:
    """A mesh of all devices of all processes, along which batches are split."""
    return jax.make_mesh((jax.device_count(),), (ROWS,), axis_types=(AxisType.Auto,))


def on_own_rows(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function`, as every device runs it on what it has of the arguments: `jax.shard_map`.

    Unchecked, for the custom gradients and loops of `models/` know nothing of axes; the function
    itself sums over the devices what is to be the same on all.

    Args:
        in_specs: how the arguments lie, `EVERYWHERE` or `BY_ROWS`, or trees of these.
        out_specs: how the results lie.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def sum_over_devices(gradient: Any, specs: Any) -> Any:
    """Inside `on_own_rows`, the gradient of all rows; of what lies in slices it is that already."""
    return jax.tree.map(
        lambda leaf, spec: lax.psum(leaf, ROWS) if spec == EVERYWHERE else leaf, gradient, specs
    )


def specs_of(tree: Any) -> Any:
    """How the leaves lie, of arrays on a mesh or of shardings."""

    def of(leaf: Any) -> PartitionSpec:
        return getattr(leaf, "sharding", leaf).spec

    return jax.tree.map(of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Everything on every device."""
    return NamedSharding(mesh, EVERYWHERE)


def split_by_rows(mesh: Mesh) -> NamedSharding:
    """A share of the rows on every device."""
    return NamedSharding(mesh, BY_ROWS)


def lying(tree: Any, mesh: Mesh, shard_fc1: bool = False) -> Any:
    """How the leaves of a tree (parameters, or a whole state) lie: everything on every device.

    Args:
        tree: of arrays.
        mesh: of n devices.
        shard_fc1: but of every `fc1/kernel` `[F, G]` a device has F / n rows.

    Raises:
        UsageError: these rows do not divide among the devices.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not (shard_fc1 and name.endswith("fc1/kernel")):
            return replicated(mesh)
        if leaf.shape[0] % mesh.size:
            raise UsageError(
                f"shard_fc1: the {leaf.shape[0]} inputs of fc1 are no multiple of the {mesh.size} "
                "devices"
            )
        return split_by_rows(mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


def check_batch_size(option: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UsageError where each of the parts of a batch does not divide among the devices."""
    if batch_size % (mesh.size * parts):
        times = f", times the {parts} parts of config.accumulation" if parts > 1 else ""
        raise UsageError(
            f"{option} is {batch_size}; it must be a multiple of the {mesh.size} devices{times}"
        )


@profiling.annotated(profiling.TO_DEVICES)
def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices; does not wait for the transfer."""
    sharding = split_by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def on_devices(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
    """Of every batch the index, here, and all of it on the devices.

    `BATCHES_AHEAD` more are on their way there: what a step needs has arrived when it begins.
    """
    ahead: collections.deque[tuple[np.ndarray, dict[str, jax.Array]]] = collections.deque()
    for batch in batches:
        ahead.append((batch["index"], to_devices(batch, mesh)))
        if len(ahead) > BATCHES_AHEAD:
            yield ahead.popleft()
    yield from ahead


@profiling.annotated(profiling.WAIT_FOR_DEVICES)
def to_host(tree: Any) -> Any:
    """Waits for arrays on the devices, and gives them as NumPy's."""
    return jax.device_get(tree)


def abstract_batch(
    mesh: Mesh, batch_size: int, image_size: int, num_classes: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `to_devices` makes of a batch of `pipeline.batches`, without its values."""
    rows = {
        "image": ((image_size, image_size, 3), jnp.uint8),
        "labels": ((num_classes,), jnp.int8),
        "index": ((), jnp.int32),
        "mask": ((), jnp.bool_),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split_by_rows(mesh))
        for name, (shape, dtype) in rows.items()
    }


def lay_out(tree: Any, shardings: Any) -> Any:
    """Puts on the devices of all processes what each of them has whole.

    Args:
        tree: of arrays, the same on every process.
        shardings: one for all, or a tree of them like `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place(values: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(values)
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    return jax.tree.map(place, tree, shardings)

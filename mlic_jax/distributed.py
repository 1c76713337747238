"""One mesh over all devices, and how state and batches lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlic_jax.errors import UsageError


def create_mesh() -> Mesh:
    """A mesh of all devices of all processes, along which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Everything on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_rows(mesh: Mesh) -> NamedSharding:
    """A share of the rows on every device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(option: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UsageError where a global batch does not divide among the devices."""
    if batch_size % mesh.size:
        raise UsageError(
            f"{option} is {batch_size}; it must be a multiple of the {mesh.size} devices"
        )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices; does not wait for the transfer."""
    sharding = split_by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }

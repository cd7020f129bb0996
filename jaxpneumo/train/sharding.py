"""One mesh axis, `data`: batches are split over it, everything else is on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpneumo.errors import InputError


def make_mesh() -> Mesh:
    """All devices of all processes in one row."""
    # Explicit axis types, jax's default here, refuse plain indexing and reshapes of sharded arrays.
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole: the train state, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of what is split along its first axis: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices, as one global array a key."""
    sharding = split(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def check_batch_size(batch_size: int, devices: int, name: str) -> None:
    """Raises InputError, naming `name`, unless the global batch divides evenly over the devices."""
    if batch_size < 1 or batch_size % devices:
        low, high = max(batch_size // devices, 1) * devices, (batch_size // devices + 1) * devices
        nearest = f"{low}" if low == high else f"{low} or {high}"
        raise InputError(
            f"{name}.batch_size={batch_size} is the global batch and must divide evenly over the {devices} "
            f"devices there are: use {nearest}, for example --config.{name}.batch_size={high}."
        )

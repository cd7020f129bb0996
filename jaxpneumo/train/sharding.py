"""One mesh axis, `data`: batches are split over it, everything else is on every device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpneumo.errors import InputError


def make_mesh(most: int | None = None) -> Mesh:
    """All devices of all processes in one row, or the first `most` of them."""
    devices = jax.devices()[: None if most is None else max(most, 1)]
    # Explicit axis types, jax's default here, refuse plain indexing and reshapes of sharded arrays.
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole: the train state, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of what is split along its first axis: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_calls(mesh: Mesh) -> NamedSharding:
    """Sharding of what is split along its second axis: the batches of several steps, stacked."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts this process's part of host arrays on its devices, as one global array each, and does not wait."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def place_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """This process's flag, once a device: compiled functions of all processes see it by `any` or `all`."""
    return place(np.full(len(mesh.local_devices), flag), split(mesh))


def all_processes(flag: bool, mesh: Mesh) -> bool:
    """Whether every process says so; every one must ask."""
    return bool(jax.device_get(jax.jit(jnp.all, out_shardings=replicated(mesh))(place_flag(flag, mesh))))


def each_on_its_device(function: Callable, mesh: Mesh, count: int) -> Callable:
    """A function of arrays that are split along their first axis, run by every device on its own share.

    The first `count` arguments are split; every device gets the others whole. What it returns is split.
    """

    def run(*arguments: Any) -> Any:
        specs = (PartitionSpec("data"),) * count + (PartitionSpec(),) * (len(arguments) - count)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"))(*arguments)

    return run


def check_batch_size(batch_size: int, devices: int, name: str) -> None:
    """Raises InputError, naming `name`, unless the global batch divides evenly over the devices."""
    if batch_size < 1 or batch_size % devices:
        low, high = max(batch_size // devices, 1) * devices, (batch_size // devices + 1) * devices
        nearest = f"{low}" if low == high else f"{low} or {high}"
        raise InputError(
            f"{name}.batch_size={batch_size} is the global batch and must divide evenly over the {devices} "
            f"devices there are: use {nearest}, for example --config.{name}.batch_size={high}."
        )

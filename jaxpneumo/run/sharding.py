"""One mesh axis, `data`: batches are split over it, everything else is on every device.

The devices may belong to several processes, on several machines. Each runs the same command and the same code on its
share of every batch; the first alone writes what is not an array, and prints.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpneumo.process.errors import InputError

# Those that are done wait for the first to evaluate and predict, at most a week.
SHUTDOWN_SECONDS = 7 * 24 * 3600


def start_processes() -> None:
    """Joins the processes of one run where the environment names several; call it before any device is touched.

    Either JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID (a Kubernetes Indexed
    Job's JOB_COMPLETION_INDEX serves too), or a Slurm step of several tasks. Each process uses all devices it sees:
    start one a machine, or let the launcher bind devices to processes.

    Raises:
      InputError: one of the variables is missing or is no number.
    """
    address, count = os.environ.get("JAX_COORDINATOR_ADDRESS"), os.environ.get("JAX_NUM_PROCESSES")
    index = os.environ.get("JAX_PROCESS_ID", os.environ.get("JOB_COMPLETION_INDEX"))
    if address or count:
        if not (address and count and index and count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={index}: give all "
                "three, as in node1:1234, 2 and 0; the last counts from 0. Unset them for a run of one process."
            )
        place_of_this = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        method = "deactivate"
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        place_of_this, method = {}, "slurm"
    else:
        return
    jax.distributed.initialize(
        **place_of_this,
        # Empty: all. By itself JAX would take one device a task.
        local_device_ids=[],
        cluster_detection_method=method,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def make_mesh() -> Mesh:
    """All devices of all processes in one row."""
    return _row(jax.devices())


def make_local_mesh(most: int | None = None) -> Mesh:
    """This process's own devices, or the first `most` of them: evaluation and prediction are one process's."""
    return _row(jax.local_devices()[: None if most is None else max(most, 1)])


def _row(devices: Any) -> Mesh:
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


def as_convolved(variables: Any) -> Any:
    """The same variables; on a GPU with kernels stored in the order in which cuDNN takes them, output channels first.

    Otherwise every call would turn them around. Within a training call of several steps XLA stores them so by itself.
    """
    if jax.default_backend() != "gpu":
        return variables
    order = Layout((3, 0, 1, 2))
    return jax.tree.map(lambda x: jax.device_put(x, Format(order, x.sharding)) if x.ndim == 4 else x, variables)


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

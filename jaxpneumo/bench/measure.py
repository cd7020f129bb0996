"""Measurement tools of the benchmarks: time of repeated calls, description of the machine, and memory.

Work on a device is asynchronous. So a repeat runs many calls one after another and waits once at the end. The result
is the median of the repeats; the output contains all repeats.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.machine import cores, free_memory, peak_memory
from jaxpneumo.process.software import software

# Duration of a repeat. At this length, clock resolution and the first dispatch do not matter.
REPEAT_SECONDS = 0.3
GIB = 2**30


def seconds_per_call(function: Callable[[], Any], repeats: int = 5, calls: int | None = None) -> list[float]:
    """Times a function that returns device arrays or None.

    Args:
      function: called without arguments. It runs twice before the measurement.
      repeats: number of repeats.
      calls: calls per repeat; None runs as many calls as take about REPEAT_SECONDS.

    Returns:
      For each repeat, the mean seconds per call.
    """
    jax.block_until_ready(function())
    start = time.perf_counter()
    jax.block_until_ready(function())
    once = time.perf_counter() - start
    calls = calls or max(1, math.ceil(REPEAT_SECONDS / max(once, 1e-6)))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def rates(count: int, seconds: Sequence[float]) -> dict[str, Any]:
    """{"images_per_second", "seconds"} (medians) and {"repeats"}: the seconds per `count` images in each repeat."""
    median = statistics.median(seconds)
    return {"images_per_second": count / median, "seconds": median, "repeats": list(seconds)}


def environment() -> dict[str, Any]:
    """Describes the measurement: date, devices, processor cores and load, software, and XLA flags."""
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": jax.default_backend(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "flags": os.environ.get("XLA_FLAGS", ""),
        **software(),
    }


def peak_bytes() -> dict[str, int | None]:
    """Peak memory in bytes: {"device"} of the first device, None if the device does not report it; {"process"}."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device": stats.get("peak_bytes_in_use"), "process": peak_memory()}


def device_memory() -> int:
    """Bytes that programs can use on the first device. On a CPU, the free memory of the machine.

    Raises:
      InputError: neither value is known.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    if free := free_memory():
        return free
    raise InputError("this machine does not tell how much memory is free: give it with --memory GIB.")


def random_batch(size: int, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Makes a training batch of noise with the shapes and types of the input path."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch, size, size), np.uint8),
        "mask": np.packbits(rng.random((batch, size, size)) < 0.1, axis=-1),
        "weight": np.ones(batch, np.float32),
    }


def network(options: argparse.Namespace, training: bool = True) -> UNet:
    """Makes the network of the options of `options.add_network`. If `training` is False, it takes folded variables."""
    return UNet(
        options.encoder,
        jnp.dtype(options.dtype),
        depths=options.depths,
        width=options.width,
        parts=rewrites_for(jax.default_backend(), training),
    )


def finish(result: dict[str, Any], lines: Sequence[str], output: Path | None) -> None:
    """Prints the table of a benchmark. Writes its results and the description of the machine to `output`."""
    print("\n".join(lines))
    if output:
        write_json(output, {**result, "environment": environment()})

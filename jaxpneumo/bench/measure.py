"""How the benchmarks measure: repeats of many calls, the machine they ran on, the memory they took.

Work on a device is asynchronous, so a repeat is many calls one after the other and one wait at its end; the
median of the repeats is the figure, and all of them are kept.
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
from jaxpneumo.model.unet import ENCODERS, UNet
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.machine import cores, free_memory, peak_memory
from jaxpneumo.process.ranges import BATCH, DEPTHS, REPEATS, SIDE, WIDTH
from jaxpneumo.process.software import software

# A repeat takes about this long, so that neither the clock nor the first dispatch counts.
REPEAT_SECONDS = 0.3
GIB = 2**30


def seconds_per_call(function: Callable[[], Any], repeats: int = 5, calls: int | None = None) -> list[float]:
    """Times a function that returns device arrays, or None.

    Args:
      function: called without arguments; twice before anything is measured.
      repeats: how many figures are wanted.
      calls: in a repeat; None: as many as take about REPEAT_SECONDS.

    Returns:
      Mean seconds a call, one figure a repeat.
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
    """{"images_per_second", "seconds"} (medians) and {"repeats"}: the seconds of `count` images in every repeat."""
    median = statistics.median(seconds)
    return {"images_per_second": count / median, "seconds": median, "repeats": list(seconds)}


def environment() -> dict[str, Any]:
    """When and where: date, devices, processor cores and load, software, what was set for XLA."""
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
    """The most memory taken so far: {"device"} by the first device (None where it does not tell), {"process"}."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device": stats.get("peak_bytes_in_use"), "process": peak_memory()}


def device_memory() -> int:
    """Bytes that programs may use on the first device; on a CPU the memory that is free on the machine.

    Raises:
      InputError: neither is known.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    if free := free_memory():
        return free
    raise InputError("this machine does not tell how much memory is free: give it with --memory GIB.")


def random_batch(size: int, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch of noise, of the shapes and types that the input path gives."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch, size, size), np.uint8),
        "mask": np.packbits(rng.random((batch, size, size)) < 0.1, axis=-1),
        "weight": np.ones(batch, np.float32),
    }


def parser(name: str, doc: str | None, example: str, repeats: int = 5) -> Parser:
    """The options that all benchmarks have: --repeats, --output. `doc` is the module's; its first line describes it."""
    result = Parser(
        prog=f"jaxpneumo bench {name}",
        description=(doc or "").split("\n")[0].partition(": ")[2],
        epilog=f"example: jaxpneumo bench {name} {example}",
    )
    result.add_argument(
        "--repeats", type=REPEATS, default=repeats, metavar="N", help="medians count (default: %(default)s)"
    )
    result.add_argument("--output", type=places.file_to_write, metavar="JSON", help="write the figures there too")
    return result


def add_network(parser: Parser, size: int | None = 256, batch: int | None = 4) -> None:
    """Options for the network and, unless None, the size of its images and batches."""
    add = parser.add_argument
    add("--encoder", choices=tuple(ENCODERS), default="resnet34_preact", help="default: %(default)s")
    add(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the computation (default: %(default)s)"
    )
    add(
        "--depths",
        type=DEPTHS,
        default="3,4,6,3",
        metavar="N,N,N,N",
        help="units of the encoder's stages (default: %(default)s)",
    )
    add("--width", type=WIDTH, default=64, metavar="N", help="channels of the first one (default: %(default)s)")
    if size:
        add("--size", type=SIDE, default=size, metavar="PIXELS", help="height and width (default: %(default)s)")
    if batch:
        add("--batch", type=BATCH, default=batch, metavar="N", help="images of a batch (default: %(default)s)")


def network(options: argparse.Namespace, training: bool = True) -> UNet:
    """The network that the options of `add_network` name; with `training` False for folded variables."""
    return UNet(
        options.encoder,
        jnp.dtype(options.dtype),
        depths=options.depths,
        width=options.width,
        parts=rewrites_for(jax.default_backend(), training),
    )


def finish(result: dict[str, Any], lines: Sequence[str], output: Path | None) -> None:
    """Prints a benchmark's table, and writes its figures with the machine's description."""
    print("\n".join(lines))
    if output:
        write_json(output, {**result, "environment": environment()})

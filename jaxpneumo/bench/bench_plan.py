"""`jaxpneumo bench plan`: the largest batch whose training step fits into the device's memory.

A compiled program reports its memory without running. The memory consists of the arguments, the results that do not
reuse the memory of arguments, and the temporary arrays. It grows linearly with the batch size. So a line through two
batch sizes predicts the largest one, which is then compiled to confirm the prediction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.bench.bench_step import jitted_step
from jaxpneumo.bench.measure import GIB, device_memory, finish, network
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import DONE, FAILED, InputError
from jaxpneumo.run.state import create_train_state, variable_shapes

# Share of the memory for the runtime, the next batch and the metrics.
MARGIN = 0.05
PROBES = (4, 8)


@dataclass(frozen=True)
class Plan:
    """The largest batch that fits.

    Attributes:
      batch: batch size of one device; 0 if not even one image fits.
      bytes: memory of the compiled step with this batch.
      fixed_bytes, image_bytes: intercept and slope of the line through the probes.
      compiled: {batch: bytes} of all compiled programs.
    """

    batch: int
    bytes: float
    fixed_bytes: float
    image_bytes: float
    compiled: dict[int, float]


def step_bytes(model: UNet, size: int, batch: int) -> int:
    """Memory in bytes of the compiled training step on one device, with `batch` images and the train state.

    Raises:
      InputError: the backend does not report the memory of programs.
    """
    step, optimizer = jitted_step(model)
    variables = variable_shapes(model)
    state = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    total = batch * jax.device_count()
    data = {
        "image": jax.ShapeDtypeStruct((total, size, size), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((total, size, size // 8), jnp.uint8),
        "weight": jax.ShapeDtypeStruct((total,), jnp.float32),
    }
    return compiled_bytes(step, state, data, jax.ShapeDtypeStruct((), jnp.float32))


def compiled_bytes(jitted: Any, *shapes: Any) -> int:
    """Memory in bytes of a compiled function and its arguments on one device. Raises InputError like `step_bytes`."""
    memory = jitted.lower(*shapes).compile().memory_analysis()
    if memory is None:
        raise InputError(f"the backend {jax.default_backend()} does not tell how much memory a program takes.")
    replaced = memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.output_size_in_bytes - replaced + memory.temp_size_in_bytes


def largest_batch(needed: Callable[[int], float], memory: float, probes: tuple[int, int] = PROBES) -> Plan:
    """Finds the largest batch that fits. It extrapolates from the two largest known batches and confirms the result.

    The result is exact if memory grows linearly, and otherwise within 1 %.

    Args:
      needed: function from batch size to bytes. It grows with the batch size, usually almost linearly. inf means that
        the batch is too large to compile.
      memory: available bytes.
      probes: the first two batch sizes. They are halved if they are too large to compile.
    """
    compiled: dict[int, float] = {batch: needed(batch) for batch in probes}
    if math.inf in compiled.values():
        if probes[0] == 1:
            return Plan(0, 0, math.nan, math.nan, compiled)
        return largest_batch(needed, memory, (probes[0] // 2, probes[1] // 2))
    while True:
        (small, less), (large, more) = sorted(item for item in compiled.items() if item[1] < math.inf)[-2:]
        slope = max((more - less) / (large - small), 1.0)
        fixed = more - slope * large
        fits = max((batch for batch, size in compiled.items() if size <= memory), default=0)
        too_large = min((batch for batch, size in compiled.items() if size > memory), default=math.inf)
        # Between a batch that fits and one that does not, the guess is at least a quarter of the way from both.
        quarter = (too_large - fits) // 4 if too_large < math.inf else 0
        guess = int(min(max((memory - fixed) // slope, fits + quarter, 1), too_large - 1 - quarter))
        # If memory does not grow linearly, the last 1 % is not worth more compilations.
        if guess - fits <= fits // 100:
            return Plan(fits, compiled.get(fits, 0), fixed, slope, compiled)
        compiled[guess] = needed(guess)


def plan(model: UNet, size: int, memory: float) -> Plan:
    """Finds the largest batch of `model`'s training step at `size`, with `memory` bytes on each device."""

    def needed(batch: int) -> float:
        try:
            return step_bytes(model, size, batch)
        except jax.errors.JaxRuntimeError as error:
            # Some backends try algorithms during compilation, which needs the memory.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return math.inf

    return largest_batch(needed, memory)


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench plan`."""
    options = PARSERS["plan"]().parse_args(argv)
    model = network(options)
    memory = options.memory * GIB if options.memory else float(device_memory())
    plans = {size: plan(model, size, memory * (1 - MARGIN)) for size in options.sizes}
    devices = jax.device_count()
    lines = [
        f"training step, {model.encoder}, {options.dtype}, in {memory / GIB:.1f} GiB less {MARGIN:.0%}, on each of "
        f"{devices} devices" + (f" (global batch: {devices} times)" if devices > 1 else ""),
        f"  {'size':>5} {'largest batch':>14} {'takes':>10} {'fixed':>10} {'an image':>10}",
    ]
    for size, found in plans.items():
        columns = " ".join(f"{value / GIB:6.2f} GiB" for value in (found.bytes, found.fixed_bytes, found.image_bytes))
        lines.append(f"  {size:5} {found.batch:14} {columns}")
    result = {"memory_bytes": memory, "margin": MARGIN, "devices": devices, "encoder": model.encoder}
    result |= {"dtype": options.dtype, "sizes": {size: vars(found) for size, found in plans.items()}}
    finish(result, lines, options.output)
    if not all(found.batch for found in plans.values()):
        print("Not even one image fits at some size: try bfloat16, or a smaller size.")
        return FAILED
    return DONE

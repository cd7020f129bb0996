"""`jaxpneumo bench plan`: the largest batch whose training step fits into the device's memory.

A compiled program says how much memory it takes, without being run: its arguments, its results where they do not
replace arguments, and its temporary arrays. That grows by the same amount with every image, so a line through two
batch sizes gives a third, which is compiled for the proof.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.bench.bench_step import jitted_step
from jaxpneumo.bench.measure import GIB, add_network, device_memory, finish, network, parser
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import DONE, FAILED, InputError
from jaxpneumo.process.ranges import SIDE, Several, number
from jaxpneumo.run.state import create_train_state, variable_shapes

# What the runtime, the next batch and the metrics take beside the step.
MARGIN = 0.05
PROBES = (4, 8)


@dataclass(frozen=True)
class Plan:
    """The largest batch that fits.

    Attributes:
      batch: of one device; 0 when not even one image fits.
      bytes: that the step takes with it, of the compiled program.
      fixed_bytes, image_bytes: of the line through the probes.
      compiled: {batch: bytes} of every program that was compiled.
    """

    batch: int
    bytes: float
    fixed_bytes: float
    image_bytes: float
    compiled: dict[int, float]


def step_bytes(model: UNet, size: int, batch: int) -> int:
    """Memory that the compiled training step takes on one device for its share of a batch, its state included.

    Raises:
      InputError: this backend does not tell.
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
    """Memory that a compiled function takes on one device with its arguments. Raises InputError as `step_bytes`."""
    memory = jitted.lower(*shapes).compile().memory_analysis()
    if memory is None:
        raise InputError(f"the backend {jax.default_backend()} does not tell how much memory a program takes.")
    replaced = memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.output_size_in_bytes - replaced + memory.temp_size_in_bytes


def largest_batch(needed: Callable[[int], float], memory: float, probes: tuple[int, int] = PROBES) -> Plan:
    """The largest batch that the line through its two largest known neighbours allows, and that was seen to fit.

    It is exact where the line is straight, and otherwise within a hundredth.

    Args:
      needed: bytes for a batch size, growing with it, usually nearly along a straight line; inf: too much to tell.
      memory: bytes that there are.
      probes: two batch sizes to begin with; halved where they are too much to tell.
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
        # Between two that are known, at least a quarter of the way from either.
        quarter = (too_large - fits) // 4 if too_large < math.inf else 0
        guess = int(min(max((memory - fixed) // slope, fits + quarter, 1), too_large - 1 - quarter))
        # Where memory does not grow along a line, the last hundredth is not worth its compilations.
        if guess - fits <= fits // 100:
            return Plan(fits, compiled.get(fits, 0), fixed, slope, compiled)
        compiled[guess] = needed(guess)


def plan(model: UNet, size: int, memory: float) -> Plan:
    """The largest batch of `model`'s training step at `size` in `memory` bytes of every device."""

    def needed(batch: int) -> float:
        try:
            return step_bytes(model, size, batch)
        except jax.errors.JaxRuntimeError as error:
            # Backends that try out algorithms while they compile need the memory then.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return math.inf

    return largest_batch(needed, memory)


def main(argv: list[str]) -> int:
    """The verb `jaxpneumo bench plan`."""
    options = parser("plan", __doc__, "--sizes 256,512 --memory 80")
    add_network(options, size=None, batch=None)
    options.add_argument(
        "--sizes", type=Several(SIDE), default="256,512", metavar="PIXELS", help="default: %(default)s"
    )
    options.add_argument(
        "--memory",
        type=number(0, 1e6, above_low=True),
        metavar="GIB",
        help="of one device (default: what it says is there)",
    )
    options = options.parse_args(argv)
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

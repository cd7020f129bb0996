"""`jaxpneumo bench step`: the compiled training step alone, with its batches already on the device.

As in training, a compiled call has several steps on an accelerator and one on a CPU.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.augment.device import make_augment
from jaxpneumo.bench.measure import (
    GIB,
    finish,
    network,
    peak_bytes,
    random_batch,
    rates,
    seconds_per_call,
)
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.bench.roofline import Rates, Work, compiled_work, counted_work, describe, device_rates, roofline
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import DONE, TrainingError
from jaxpneumo.run.config import Loss
from jaxpneumo.run.sharding import check_batch_size, make_mesh, place, place_flag, replicated, split, split_calls
from jaxpneumo.run.state import TrainState, create_train_state, initialise
from jaxpneumo.train.feed import STEPS_PER_CALL, plan_calls
from jaxpneumo.train.optimizer import make_optimizer
from jaxpneumo.train.step import make_train_call, make_train_step

LEARNING_RATE = 1e-4
LOSS = Loss("batch")


def jitted_step(model: UNet) -> tuple[Any, Any]:
    """Makes a stage's training step. Returns train_step(state, batch, rate), not yet compiled, and its optimizer."""
    mesh, optimizer = make_mesh(), make_optimizer()
    everywhere, along_data = replicated(mesh), split(mesh)
    step = jax.jit(
        make_train_step(model, optimizer, LOSS),
        in_shardings=(everywhere, along_data, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    return step, optimizer


def fresh_state(model: UNet, optimizer: Any) -> TrainState:
    """Makes the initial train state of a stage from random weights, on all devices."""
    state = create_train_state(initialise(model, 0), optimizer)
    return jax.device_put(state, replicated(make_mesh()))


def bench_step(
    model: UNet,
    size: int,
    batch: int,
    repeats: int = 5,
    calls: int | None = None,
    device: Rates | None = None,
    augment: Callable | None = None,
) -> dict[str, Any]:
    """Times training steps on batches of noise.

    Args:
      model: the network.
      size: height and width of the images, a multiple of 32.
      batch: global batch size.
      repeats, calls: see `seconds_per_call`.
      device: measured rates of the device; None omits the roofline.
      augment: augmentation in the step, on the device; None for no augmentation.

    Returns:
      {"size", "batch", "dtype", "encoder", "augmented", "images_per_second", "seconds", "repeats", "compile_seconds",
      "loss", "peak_bytes", "roofline": {"compiled", "counted"}}.

    Raises:
      InputError: the batch size is not a multiple of the number of devices.
      TrainingError: the loss is not finite, so the times are meaningless.
    """
    prepared = prepare_step(model, size, batch, augment)
    seconds = [each / prepared.steps for each in seconds_per_call(prepared.once, repeats, calls)]
    loss = float(prepared.once())
    if not math.isfinite(loss):
        raise TrainingError(f"the loss of the measured steps became {loss}: the times mean nothing.")
    result = {
        "size": size,
        "batch": batch,
        "dtype": jnp.dtype(model.dtype).name,
        "encoder": model.encoder,
        "augmented": augment is not None,
        **rates(batch, seconds),
        "compile_seconds": prepared.compile_seconds,
        "loss": loss,
        "peak_bytes": peak_bytes(),
    }
    if device:
        # Of a loop's steps XLA's analysis does not say how many it counts.
        compiled = compiled_work(prepared.compiled) if prepared.steps == 1 else Work(None, None)
        result["roofline"] = rooflines(compiled, prepared.counted, result, device, jax.device_count())
    return result


def rooflines(compiled: Work, counted: Work, result: dict[str, Any], device: Rates, devices: int) -> dict[str, Any]:
    """Compares the time of a measured program with both counts of its work: {"compiled", "counted"}."""
    line = functools.partial(roofline, result["seconds"], rates=device, dtype=result["dtype"])
    # XLA analyses the program of one device. The count covers the whole batch.
    return {
        "compiled": line(compiled),
        "counted": line(counted, devices=devices),
    }


@dataclass(frozen=True)
class PreparedStep:
    """A compiled call of training steps with state and batches on the devices.

    Attributes:
      once: function that runs one call and returns the loss of its last step.
      steps: number of steps in a call, as in training: several on an accelerator, one on a CPU.
      compiled: the compiled program.
      counted: the work of one step, counted from shapes.
      compile_seconds: time of the compilation in seconds.
    """

    once: Callable[[], jax.Array]
    steps: int
    compiled: Any
    counted: Work
    compile_seconds: float


def prepare_step(model: UNet, size: int, batch: int, augment: Callable | None = None) -> PreparedStep:
    """Compiles a call of steps for batches of noise. For arguments and errors see `bench_step`."""
    mesh, optimizer = make_mesh(), make_optimizer()
    check_batch_size(batch, mesh.size, "step")
    steps = plan_calls(STEPS_PER_CALL)[0]
    step = make_train_step(model, optimizer, LOSS, augment)
    call = jax.jit(
        make_train_call(step),
        in_shardings=(replicated(mesh), replicated(mesh), split_calls(mesh), replicated(mesh), split(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    state = fresh_state(model, optimizer)
    one = random_batch(size, batch)
    feed = place({key: np.stack([value] * steps) for key, value in one.items()}, split_calls(mesh))
    rates_of_call, stop = place(np.array([LEARNING_RATE, 1.0], np.float32), replicated(mesh)), place_flag(False, mesh)
    counted = counted_work(step, *jax.eval_shape(lambda *x: x, state, one, jnp.float32(LEARNING_RATE)))
    start = time.perf_counter()
    compiled = call.lower(state, {}, feed, rates_of_call, stop).compile()
    compile_seconds = time.perf_counter() - start

    def once() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, {}, feed, rates_of_call, stop)
        return metrics["loss"][-1]

    return PreparedStep(once, steps, compiled, counted, compile_seconds)


def _augmentation(probabilities: Sequence[float] | None, size: int) -> Callable | None:
    if not probabilities or not any(probabilities):
        return None
    flip, intensity, distortion, crop = probabilities
    return make_augment(flip, intensity, distortion, crop, size)


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench step`."""
    options = PARSERS["step"]().parse_args(argv)
    model, augment = network(options), _augmentation(options.augment, options.size)
    device = None if options.no_roofline else device_rates(repeats=3)
    result = bench_step(model, options.size, options.batch, options.repeats, options.calls, device, augment)
    peak = result["peak_bytes"]["device"] or result["peak_bytes"]["process"]
    finish(
        {**result, "rates": device and vars(device)},
        [
            f"training step, {model.encoder} at {options.size}, batch {options.batch}, {options.dtype}: "
            f"{result['images_per_second']:.2f} images/s, {result['seconds'] * 1e3:.1f} ms",
            *(describe(name, line) for name, line in result.get("roofline", {}).items()),
            f"  compiled in {result['compile_seconds']:.1f} s, peak memory {peak / GIB:.2f} GiB",
        ],
        options.output,
    )
    return DONE

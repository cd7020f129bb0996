"""`jaxpneumo bench augment`: the augmentation engines, alone and as a share of the training step.

The device engine runs inside the compiled step. Its share is the difference between a step with and a step without
augmentation; both are measured alternately. The host engine runs in the threads that read the data. Its result is for
one processor core.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.augment import device, host
from jaxpneumo.bench.bench_input import PROBABILITIES
from jaxpneumo.bench.bench_step import prepare_step
from jaxpneumo.bench.measure import finish, network, random_batch, rates, seconds_per_call
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import DONE


def bench_augment(
    model: UNet, size: int, batch: int, repeats: int = 5, calls: int | None = None, images: int = 200
) -> dict[str, Any]:
    """Times both engines on noise, with the probabilities of the configs.

    Args:
      model: the network of the training step.
      size: height and width of the images.
      batch: batch size of the device engine and of the step.
      repeats, calls: see `seconds_per_call`.
      images: number of images that the host engine augments per repeat.

    Returns:
      {"size", "batch", "dtype", "encoder", "device", "host" (one core), "plain_step", "augmented_step":
      {"images_per_second", "seconds", "repeats"}, "alone_share" (time of the device engine alone / time of the plain
      step), "step_share" (time that augmentation adds to a step / time of the plain step, median of the repeats)}.
    """
    augment = device.make_augment(**PROBABILITIES, size=size)
    data = random_batch(size, batch)
    image, mask = jnp.asarray(data["image"]), jnp.unpackbits(jnp.asarray(data["mask"]), axis=-1)
    keys = jax.random.split(jax.random.key(0), batch)
    alone = jax.jit(augment)
    seconds = {"device": seconds_per_call(lambda: alone(keys, image, mask), repeats, calls)}
    steps = {"plain_step": prepare_step(model, size, batch)}
    steps["augmented_step"] = prepare_step(model, size, batch, augment)
    seconds |= {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name] += [each / step.steps for each in seconds_per_call(step.once, 1, calls)]
    added = [
        (augmented - plain) / plain
        for plain, augmented in zip(seconds["plain_step"], seconds["augmented_step"], strict=True)
    ]
    host_seconds = _host_seconds(size, images, repeats)
    return {
        "size": size,
        "batch": batch,
        "dtype": jnp.dtype(model.dtype).name,
        "encoder": model.encoder,
        **{name: rates(batch, found) for name, found in seconds.items()},
        "host": rates(images, host_seconds),
        "alone_share": statistics.median(seconds["device"]) / statistics.median(seconds["plain_step"]),
        "step_share": statistics.median(added),
    }


def _host_seconds(size: int, images: int, repeats: int) -> list[float]:
    """Seconds that one core needs to augment this number of images, for each repeat."""
    augment = host.make_augment(**PROBABILITIES, size=size)
    batch = random_batch(size, 1)
    image, mask = batch["image"][0], np.unpackbits(batch["mask"][0], axis=-1)
    augment(image, mask, np.random.default_rng(0))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for seed in range(images):
            augment(image, mask, np.random.default_rng(seed))
        seconds.append(time.perf_counter() - start)
    return seconds


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench augment`."""
    options = PARSERS["augment"]().parse_args(argv)
    result = bench_augment(network(options), options.size, options.batch, options.repeats, options.calls)
    finish(
        result,
        [
            f"augmentation at {options.size}, batch {options.batch}, A1..A4 with the shipped probabilities",
            f"  device engine alone {result['device']['images_per_second']:10.0f} images/s, "
            f"{result['alone_share']:.2%} of the training step's time ({options.dtype})",
            f"  it adds to a step   {result['step_share']:10.2%}",
            f"  host engine         {result['host']['images_per_second']:10.0f} images/s a core",
        ],
        options.output,
    )
    return DONE

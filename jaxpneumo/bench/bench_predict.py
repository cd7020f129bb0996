"""`jaxpneumo bench predict`: the compiled prediction, with flip test-time augmentation, from weights in memory.

The benchmark takes two times. The time of the network is from uint8 images on the device to the mean probability of
both views and a mask at the network's size. The time of the whole prediction is from images on the host to packed
masks at native size on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.bench.bench_step import rooflines
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
from jaxpneumo.bench.roofline import Rates, Work, compiled_work, counted_work, describe, device_rates
from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.infer import (
    CompiledNetwork,
    compile_network,
    jit_outputs,
    predict_masks,
    predict_probabilities,
)
from jaxpneumo.process.errors import DONE
from jaxpneumo.run.config import Predict
from jaxpneumo.run.sharding import check_batch_size, make_local_mesh, replicated, split
from jaxpneumo.run.state import initialise

NATIVE = 1024
THRESHOLD, REMOVAL = 0.5, 2048


def bench_predict(
    model: UNet,
    size: int,
    batch: int,
    repeats: int = 5,
    calls: int | None = None,
    device: Rates | None = None,
    mirror: bool = True,
    native: int = NATIVE,
) -> dict[str, Any]:
    """Times prediction on one batch of noise.

    Args:
      model: the network, for folded variables.
      size: height and width of the network's input, a multiple of 32.
      batch: images per call. With `mirror`, the network processes twice as many.
      repeats, calls: see `seconds_per_call`.
      device: measured rates of the device; None omits the roofline.
      mirror: whether to use flip test-time augmentation.
      native: height and width of the masks in the whole prediction.

    Returns:
      {"size", "batch", "dtype", "encoder", "mirror", "images_per_second", "seconds", "repeats" (of the network),
      "whole": {"native" and the same three values of the whole prediction}, "peak_bytes", "roofline"}.

    Raises:
      InputError: the batch size is not a multiple of the number of devices.
    """
    prepared = prepare_predict(model, size, batch, mirror)
    images = random_batch(size, batch)["image"]

    def whole() -> None:
        stream = ((key, image, (native, native)) for key, image in enumerate(images))
        for _ in predict_masks(prepared.network, stream, [int(mirror)]):
            pass

    seconds = seconds_per_call(prepared.once, repeats, calls)
    result = {
        "size": size,
        "batch": batch,
        "dtype": jnp.dtype(model.dtype).name,
        "encoder": model.encoder,
        "mirror": mirror,
        **rates(batch, seconds),
        "whole": {"native": native, **rates(batch, seconds_per_call(whole, repeats, calls))},
        "peak_bytes": peak_bytes(),
    }
    if device:
        devices = prepared.network.mesh.size
        result["roofline"] = rooflines(compiled_work(prepared.compiled), prepared.counted, result, device, devices)
    return result


@dataclass(frozen=True)
class PreparedPrediction:
    """A compiled prediction with weights and a batch of noise on the devices.

    Attributes:
      once: function that predicts the batch once and returns its masks.
      compiled: the compiled program.
      counted: the work of the program, counted from shapes.
      network: the same network, for whole predictions.
    """

    once: Callable[[], jax.Array]
    compiled: Any
    counted: Work
    network: CompiledNetwork


def prepare_predict(model: UNet, size: int, batch: int, mirror: bool = True) -> PreparedPrediction:
    """Compiles the prediction of a batch of noise. For arguments and errors see `bench_predict`."""
    mesh = make_local_mesh(batch)
    check_batch_size(batch, mesh.size, "predict")
    settings = Predict(size, batch, True, THRESHOLD, REMOVAL)
    network = compile_network(model, jax.device_put(initialise(model, 0), replicated(mesh)), settings, mesh)

    def masks(variables: dict[str, Any], image: jax.Array, tta: bool) -> tuple[jax.Array, None]:
        return predict_probabilities(model, variables, image, tta)[-1] >= THRESHOLD, None

    on_device = jax.device_put(random_batch(size, batch)["image"], split(mesh))
    compiled = jit_outputs(masks, mesh).lower(network.variables, on_device, mirror).compile()
    counted = counted_work(lambda variables, image: masks(variables, image, mirror)[0], network.variables, on_device)
    return PreparedPrediction(lambda: compiled(network.variables, on_device)[0], compiled, counted, network)


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench predict`."""
    options = PARSERS["predict"]().parse_args(argv)
    model, device = network(options, training=False), None if options.no_roofline else device_rates(repeats=3)
    result = bench_predict(
        model, options.size, options.batch, options.repeats, options.calls, device, not options.no_tta
    )
    peak, whole = result["peak_bytes"]["device"] or result["peak_bytes"]["process"], result["whole"]
    finish(
        {**result, "rates": device and vars(device)},
        [
            f"prediction, {model.encoder} at {options.size}, batch {options.batch}, {options.dtype}, "
            f"{'without' if options.no_tta else 'with'} flip TTA: "
            f"{result['images_per_second']:.2f} images/s, {result['seconds'] * 1e3:.1f} ms a batch",
            f"  host to host at {NATIVE}x{NATIVE}: {whole['images_per_second']:.2f} images/s, "
            f"{whole['seconds'] * 1e3:.1f} ms a batch",
            *(describe(name, line) for name, line in result.get("roofline", {}).items()),
            f"  peak memory {peak / GIB:.2f} GiB",
        ],
        options.output,
    )
    return DONE

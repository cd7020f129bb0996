"""`jaxpneumo bench predict`: the compiled prediction, with flip test-time augmentation, from weights in memory.

Two times are taken. The network's is from uint8 images on the device to both views' mean probability and a mask at
the network's size. The whole one is from images on the host to packed masks of the native size on the host.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpneumo.bench.bench_step import rooflines
from jaxpneumo.bench.measure import (
    GIB,
    add_network,
    finish,
    network,
    parser,
    peak_bytes,
    random_batch,
    rates,
    seconds_per_call,
)
from jaxpneumo.bench.roofline import Rates, counted_work, describe, device_rates
from jaxpneumo.model.folding import fold
from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.infer import Predictor, predict_masks, predict_probabilities
from jaxpneumo.predict.native import native_masks
from jaxpneumo.process.errors import DONE
from jaxpneumo.process.ranges import CALLS
from jaxpneumo.run.config import Predict
from jaxpneumo.run.sharding import check_batch_size, each_on_its_device, make_local_mesh, replicated, split
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
      size: height and width that it sees, a multiple of 32.
      batch: images of a call; with `mirror` the network sees twice as many.
      repeats, calls: as for `seconds_per_call`.
      device: its measured rates; None leaves the roofline out.
      mirror: flip test-time augmentation.
      native: height and width of the masks of the whole prediction.

    Returns:
      {"size", "batch", "dtype", "encoder", "mirror", "images_per_second", "seconds", "repeats" (the network's),
      "whole": the same three of the whole prediction, "peak_bytes", "roofline"}.

    Raises:
      InputError: the batch does not divide among the devices.
    """
    mesh = make_local_mesh(batch)
    check_batch_size(batch, mesh.size, "predict")
    variables = fold(initialise(model, 0), model.encoder, jnp.dtype(model.dtype))
    variables = jax.device_put(variables, replicated(mesh))
    images = random_batch(size, batch)["image"]

    def masks(variables: dict[str, Any], image: jax.Array) -> jax.Array:
        return predict_probabilities(model, variables, image, mirror)[-1] >= THRESHOLD

    on_device = jax.device_put(images, split(mesh))
    jitted = jax.jit(masks, in_shardings=(replicated(mesh), split(mesh)))
    compiled = jitted.lower(variables, on_device).compile()
    predictor = _predictor(model, variables, mesh, size, batch)

    def whole() -> None:
        stream = ((key, image, (native, native)) for key, image in enumerate(images))
        for _ in predict_masks(predictor, stream, [int(mirror)]):
            pass

    seconds = seconds_per_call(lambda: compiled(variables, on_device), repeats, calls)
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
        result["roofline"] = rooflines(compiled, counted_work(jitted, variables, on_device), result, device, mesh.size)
    return result


def _predictor(model: UNet, variables: dict[str, Any], mesh: Mesh, size: int, batch: int) -> Predictor:
    """What `load_predictor` makes of a run, without one."""
    settings = Predict(size, batch, True, THRESHOLD, REMOVAL)
    probabilities = jax.jit(
        functools.partial(predict_probabilities, model),
        static_argnums=2,
        in_shardings=(replicated(mesh), split(mesh)),
    )
    masks = jax.jit(each_on_its_device(native_masks, mesh, 3))
    return Predictor(None, settings, Path(), "", variables, "", mesh, probabilities, masks)


def main(argv: list[str]) -> int:
    """The verb `jaxpneumo bench predict`."""
    options = parser("predict", __doc__.split(": ", 1)[1].split("\n")[0], "--size 512 --batch 32 --dtype bfloat16")
    add_network(options, size=512, batch=1)
    options.add_argument("--no-tta", action="store_true", help="without the mirror image")
    options.add_argument("--calls", type=CALLS, metavar="N", help="predictions a repeat (default: about 0.3 s)")
    options.add_argument("--no-roofline", action="store_true", help="do not measure the device's own rates")
    options = options.parse_args(argv)
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

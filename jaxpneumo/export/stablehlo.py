"""The whole prediction as one function of JAX, serialised as StableHLO: JAX alone runs it, on CPUs, GPUs and TPUs.

It takes and gives what the ONNX model does (`onnx_model`), the inputs in the same order and the outputs by name. The
number of images and their sizes are open. Beside the file lies FILE.json with the thresholds and what else is to be
said of the network.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpneumo.export.onnx_model import OUTPUTS, inputs
from jaxpneumo.predict.onnx_session import THRESHOLDS, threshold_inputs
from jaxpneumo.process.errors import InputError

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    import jax

    from jaxpneumo.predict.infer import Predictor
    from jaxpneumo.run.config import Predict

PLATFORMS = ("cpu", "cuda", "tpu")
# How another program uses the file; it needs jax and flatbuffers and nothing of this package.
LOADER = """\
import json
from pathlib import Path

import jax.export
import numpy as np


def load(path):
    network = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    thresholds = json.loads(Path(f"{path}.json").read_text())["thresholds"].values()
    given = [np.asarray(value, kind.dtype) for value, kind in zip(thresholds, network.in_avals[1:])]
    # uint8 (N, H, W) with white bones -> {"mask", "probability", "score"}
    return lambda images: jax.device_get(network.call(images, *given))
"""


def to_stablehlo(predictor: "Predictor") -> bytes:
    """The bytes of a run's prediction, weights included.

    Args:
      predictor: with the settings to export.

    Raises:
      InputError: the package flatbuffers is missing.
    """
    import jax

    from jaxpneumo.predict.infer import predict_outputs
    from jaxpneumo.run.network import make_model

    model, settings = make_model(predictor.config.model, training=False), predictor.settings
    # As NumPy arrays they are constants of the program, and none of its arguments.
    outputs = partial(predict_outputs, model, jax.tree.map(np.asarray, jax.device_get(predictor.variables)))
    images = jax.export.symbolic_shape("images, height, width")
    names = list(threshold_inputs(settings, predictor.config.model.classifier))
    arguments = [
        jax.ShapeDtypeStruct(images if shape else (), np.int32 if kind is np.int64 else kind)
        for kind, shape in inputs(names).values()
    ]

    def predict(image: "jax.Array", *thresholds: "jax.Array") -> dict[str, "jax.Array"]:
        pixels, finding = outputs(image=_shrink(image, settings.size), tta=settings.tta)
        found = pixels[-1], None if finding is None else finding[-1]
        return _masks(*found, image.shape, dict(zip(names, thresholds, strict=True)))

    exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(*arguments)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError(
            "--format stablehlo needs the package flatbuffers: pip install 'jaxpneumo[export]'."
        ) from error


def from_stablehlo(data: bytes, settings: "Predict") -> Callable[[np.ndarray], list[np.ndarray]]:
    """The function of a file: uint8 (N, H, W) -> mask, probability and score, with the thresholds of `settings`."""
    import jax

    network = jax.export.deserialize(bytearray(data))
    names = list(OUTPUTS)
    given = list(threshold_inputs(settings, len(network.in_avals) > len(THRESHOLDS)).values())

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = jax.device_get(network.call(images, *given))
        return [found[name] for name in names]

    return run


def beside(description: dict[str, Any]) -> str:
    """The text of FILE.json."""
    return json.dumps({**description, "loader": LOADER.splitlines()}, indent=2) + "\n"


def _masks(
    probability: "jax.Array",
    finding: "jax.Array | None",
    shape: tuple[Any, ...],
    thresholds: Mapping[str, "jax.Array"],
) -> dict[str, "jax.Array"]:
    """Masks, probabilities and scores of images of a shape (N, H, W), from what the network finds in them."""
    import jax.numpy as jnp

    from jaxpneumo.predict.image_scores import image_scores, top_pixels

    size = shape[1:]
    native = _enlarge(probability, size)
    mask, top = (native >= thresholds[name] for name in ("threshold", "top_threshold"))
    kept = _is_large(mask, thresholds["removal_threshold"], size) & _is_large(top, thresholds["top_area"], size)
    if finding is not None:
        kept &= finding >= thresholds["classifier_threshold"]
    score = image_scores(probability, top_pixels(probability.shape[-1]))[:, 1] if finding is None else finding
    return {"mask": (mask & kept[:, None, None]).astype(jnp.uint8), "probability": native, "score": score}


def _shrink(image: "jax.Array", size: int) -> "jax.Array":
    """Means over areas as `data.resize` rounds them: uint8 (N, H, W) -> uint8 (N, size, size)."""
    import jax.numpy as jnp

    height, width = (jnp.asarray(side) for side in image.shape[1:])
    rows, columns = (_overlaps(side, size) for side in image.shape[1:])
    sums = jnp.matmul(rows, image.astype(jnp.float32), precision="highest")
    sums = jnp.matmul(sums, columns.T, precision="highest")
    means = sums * (size * size / (height * width).astype(jnp.float32))
    # OpenCV rounds halves up where it averages 2 x 2 pixels, and to even elsewhere.
    double = (height == 2 * size) & (width == 2 * size)
    return jnp.where(double, jnp.floor(means + 0.5), jnp.round(means)).astype(jnp.uint8)


def _overlaps(side: Any, size: int) -> "jax.Array":
    """How much of each of `side` pixels lies in each of `size` areas, in pixels: float32 (size, side)."""
    import jax.numpy as jnp

    source, target = jnp.arange(side), jnp.arange(size)[:, None]
    # In parts of a pixel of which `size` make one
    low, high = jnp.maximum(target * side, source * size), jnp.minimum((target + 1) * side, (source + 1) * size)
    return jnp.maximum(high - low, 0).astype(jnp.float32) / size


def _enlarge(x: "jax.Array", size: tuple[Any, ...]) -> "jax.Array":
    """Linear between the centres of pixels, as `predict.native`: (N, S, S) -> (N, *size). Columns come first."""
    import jax.numpy as jnp

    last = x.shape[-1] - 1
    for axis, side in ((2, size[1]), (1, size[0])):
        # The place (i + 1/2) S / side - 1/2 in parts of a pixel of which 2 side make one
        parts = 2 * jnp.asarray(side)
        place = jnp.clip((2 * jnp.arange(side) + 1) * (last + 1) - side, 0, last * parts)
        first = place // parts
        share = (place - first * parts).astype(jnp.float32) / parts.astype(jnp.float32)
        lower, upper = (jnp.take(x, at, axis=axis) for at in (first, jnp.minimum(first + 1, last)))
        x = lower + (upper - lower) * (share if axis == 2 else share[:, None])
    return x


def _is_large(mask: "jax.Array", threshold: "jax.Array", size: tuple[Any, ...]) -> "jax.Array":
    """Whether each mask has the area `threshold`, in pixels of a 1024x1024 image: bool (N,).

    The area in native pixels is `native.pixels_at_least`, in steps whose numbers 32 bits hold.
    """
    import jax.numpy as jnp

    high, low = jnp.divmod(jnp.asarray(size[0]) * jnp.asarray(size[1]), 2**20)
    upper, lower = jnp.divmod(threshold, 2**10)
    smallest = threshold * high + (upper * low + (lower * low + 1023) // 1024 + 1023) // 1024
    return mask.sum((1, 2), dtype=jnp.int32) >= smallest

"""A trained run brought back for prediction, and the compiled functions from images to native masks.

Two functions run on the device one after the other: the network over both flip views in one call, at the
config's size; then resize and threshold at the native size, from which the host gets bits. They are apart so
that radiographs of another native size compile the small second one only.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.train import checkpoint
from jaxpneumo.train.config import read_config, stages_of
from jaxpneumo.train.loop import make_model
from jaxpneumo.train.sharding import check_batch_size, make_mesh, replicated, split
from jaxpneumo.train.state import initialise


@dataclass(frozen=True)
class Predictor:
    """A finished run's network, ready to predict.

    Attributes:
      config: the run's config.
      workdir: the run.
      stage: the stage whose weights these are, the run's last.
      variables: {"params", "batch_stats"} on all devices.
      mesh: the devices.
      probabilities: compiled, (variables, uint8 (B, S, S), mirror) -> float32 (2, B, S, S): without and with
        flip TTA; with mirror False only the first.
      native_mask: `to_native_mask`, compiled.
    """

    config: ConfigDict
    workdir: Path
    stage: str
    variables: dict[str, Any]
    mesh: Mesh
    probabilities: Any
    native_mask: Any


def load_predictor(workdir: Path | str) -> Predictor:
    """Restores a run's final weights from its folder alone.

    Raises:
      InputError: the folder is no run, or its last stage is not finished.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    stage = stages_of(config)[-1]
    model, mesh = make_model(config), make_mesh()
    template = jax.eval_shape(lambda: initialise(model, 0))
    variables, _ = checkpoint.restore_final(workdir / stage, template, replicated(mesh))
    check_batch_size(config.predict.batch_size, mesh.size, "predict")
    return Predictor(
        config,
        workdir,
        stage,
        variables,
        mesh,
        jax.jit(
            functools.partial(predict_probabilities, model),
            static_argnums=2,
            in_shardings=(replicated(mesh), split(mesh)),
        ),
        jax.jit(to_native_mask, static_argnums=(2, 3)),
    )


def predict_probabilities(model: UNet, variables: dict[str, Any], image: jax.Array, mirror: bool) -> jax.Array:
    """Probability of pneumothorax a pixel, plain and averaged over the image and its mirror image (flip TTA).

    Args:
      model: the network.
      variables: its {"params", "batch_stats"}.
      image: uint8 (B, S, S).
      mirror: whether the mirror image is wanted at all.

    Returns:
      float32 (2, B, S, S): the image's own probabilities, and the mean of both views; (1, B, S, S) without mirror.
    """
    views = jnp.stack([image, image[..., ::-1]] if mirror else [image], axis=1)
    # Image and mirror image lie beside each other, so that both stay on the device that holds the image.
    batch = views.reshape(-1, *image.shape[1:])
    logits = model.apply(variables, batch.astype(jnp.float32)[..., None] / 255.0, train=False)
    probability = jax.nn.sigmoid(logits).reshape(views.shape)
    if not mirror:
        return probability.swapaxes(0, 1)
    plain, mirrored = probability[:, 0], probability[:, 1, :, ::-1]
    return jnp.stack([plain, (plain + mirrored) / 2])


def to_native_mask(
    probability: jax.Array,
    threshold: jax.Array,
    height: int,
    width: int,
    top: jax.Array | float = 0.0,
    top_area: jax.Array | float = 0.0,
) -> jax.Array:
    """Bilinear resize to the native size, then >= threshold; bits along the rows, as np.packbits has them.

    A mask with fewer than `top_area` pixels >= `top` is emptied.
    """
    native = to_native(probability, height, width)
    kept = jnp.sum(native >= top, axis=(1, 2), keepdims=True, dtype=jnp.int32) >= top_area
    return jnp.packbits((native >= threshold) & kept, axis=-1)


def to_native(probability: jax.Array, height: int, width: int) -> jax.Array:
    """(B, S, S) probabilities resized bilinearly to (B, height, width)."""
    return jax.image.resize(probability, (probability.shape[0], height, width), "bilinear", antialias=False)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W) -> (size, size), squashed, as `prepare` does it: by area average."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def predict_masks(
    predictor: Predictor,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    views: Iterable[int] = (0, 1),
) -> Iterator[tuple[Any, dict[int, np.ndarray]]]:
    """Masks of images at their native sizes, in compiled batches.

    The masks are those of the config's predict.threshold. With predict.top_threshold and predict.top_area
    (`jaxpneumo thresholds` chooses them) a mask also needs that area, in pixels of a 1024x1024 image, at that
    probability, or it is emptied.

    Args:
      predictor: of `load_predictor`.
      images: (key, uint8 (S, S) at the config's predict.size, (native height, native width)) each.
      views: which masks are wanted: 0 without, 1 with flip TTA.

    Yields:
      (key, {view: uint8 (H, W) 0/1}) in the order of the stream within a native size; sizes are batched apart.
    """
    predict, views = predictor.config.predict, tuple(views)
    threshold, top = jnp.float32(predict.threshold), jnp.float32(predict.get("top_threshold", 0.0))

    def bits(_: list[Any], probability: jax.Array, height: int, width: int) -> dict[int, jax.Array]:
        area = jnp.float32(predict.get("top_area", 0) * height * width / NATIVE_AREA)
        return {view: predictor.native_mask(probability[view], threshold, height, width, top, area) for view in views}

    for key, (_, width), packed in predict_native(predictor, images, 1 in views, bits):
        yield key, {view: np.unpackbits(b, axis=-1)[:, :width] for view, b in packed.items()}


def predict_native(
    predictor: Predictor,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    mirror: bool,
    native: Callable[[list[Any], jax.Array, int, int], Any],
) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    """What `native` makes of images' probabilities, in compiled batches of one native size each.

    Args:
      predictor: of `load_predictor`.
      images: as for `predict_masks`.
      mirror: whether flip TTA is wanted.
      native: (keys, probability (1 or 2, B, S, S), height, width) -> tree of device arrays with leading axis B,
        computed on the device. There are fewer keys than B in a batch that is not full.

    Yields:
      (key, (native height, native width), that image's part of the tree, as NumPy arrays); order as in
      `predict_masks`.
    """
    batch_size = predictor.config.predict.batch_size
    waiting: dict[tuple[int, int], list[tuple[Any, np.ndarray]]] = {}
    pending = None
    for key, image, size in images:
        group = waiting.setdefault(size, [])
        group.append((key, image))
        full = size if len(group) == batch_size else None
        if full is None and sum(map(len, waiting.values())) >= 4 * batch_size:
            # Among many native sizes no batch may ever fill: what waits must not grow with the archive.
            full = max(waiting, key=lambda other: len(waiting[other]))
        if full is not None:
            started = _start(predictor, waiting.pop(full), full, mirror, native)
            # The batch before is fetched while the device works on this one.
            if pending is not None:
                yield from _finish(*pending)
            pending = started
    for size, group in waiting.items():
        started = _start(predictor, group, size, mirror, native)
        if pending is not None:
            yield from _finish(*pending)
        pending = started
    if pending is not None:
        yield from _finish(*pending)


def _start(
    predictor: Predictor,
    group: list[tuple[Any, np.ndarray]],
    size: tuple[int, int],
    mirror: bool,
    native: Callable[[list[Any], jax.Array, int, int], Any],
) -> tuple[list[Any], tuple[int, int], Any]:
    predict = predictor.config.predict
    batch = np.zeros((predict.batch_size, predict.size, predict.size), np.uint8)
    for i, (_, image) in enumerate(group):
        batch[i] = image
    keys = [key for key, _ in group]
    return keys, size, native(keys, predictor.probabilities(predictor.variables, batch, mirror), *size)


def _finish(keys: list[Any], size: tuple[int, int], tree: Any) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    host = jax.device_get(tree)
    for i, key in enumerate(keys):
        yield key, size, jax.tree.map(lambda leaf, i=i: leaf[i], host)

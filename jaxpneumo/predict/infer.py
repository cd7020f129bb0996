"""A trained run brought back for prediction, and the compiled functions from images to native masks.

Two functions run on the device one after the other: the network over both flip views in one call, at the
config's size; then resize and thresholds at the native sizes (`native.py`), from which the host gets bits. They are
apart so that radiographs for another canvas compile the small second one only.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.model.folding import fold
from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.native import Grid, NativeMask, native_grid, native_masks, pixels_at_least
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Config, Predict, read_config
from jaxpneumo.run.network import make_model
from jaxpneumo.run.provenance import trained_on_synthetic
from jaxpneumo.run.sharding import check_batch_size, each_on_its_device, make_local_mesh, place, replicated, split
from jaxpneumo.run.state import variable_shapes


@dataclass(frozen=True)
class CompiledNetwork:
    """A network that is ready to predict.

    Attributes:
      settings: of the prediction.
      variables: {"params", "batch_stats"} on all devices, BatchNorms folded (`model.folding.fold`).
      mesh: the devices.
      probabilities: compiled, (variables, uint8 (B, S, S), mirror) -> float32 (2, B, S, S): without and with
        flip TTA; with mirror False only the first.
      native_masks: `native.native_masks`, compiled.
    """

    settings: Predict
    variables: dict[str, Any]
    mesh: Mesh
    probabilities: Any
    native_masks: Any


@dataclass(frozen=True)
class Predictor(CompiledNetwork):
    """A finished run's network, and where it comes from. Its settings are the run's, or what a verb makes of them.

    Attributes:
      config: the run's config.
      workdir: the run.
      stage: the stage whose weights these are, the run's last.
      model_id: `fingerprint` of the weights as training left them.
      synthetic: trained on synthetic radiographs, which show no patients.
      weighted_runs: of an ensemble (`ensemble.load_ensemble`) its runs and their weights; `workdir` is the first.
    """

    config: Config
    workdir: Path
    stage: str
    model_id: str
    synthetic: bool = False
    weighted_runs: tuple[tuple[Path, float], ...] = ()


def load_predictor(workdir: Path | str, batch_size: int | None = None) -> Predictor:
    """Restores a run's final weights from its folder alone.

    Args:
      workdir: of a finished run.
      batch_size: instead of the run's own predict.batch_size. A batch of fewer images than there are devices is
        predicted on so many devices.

    Raises:
      InputError: the folder is no run, its last stage is not finished, or the batch does not divide over the devices.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    settings = config.predict if batch_size is None else replace(config.predict, batch_size=batch_size)
    stage = config.stages[-1].name
    mesh = make_local_mesh(batch_size)
    check_batch_size(settings.batch_size, mesh.size, "predict")
    template = variable_shapes(make_model(config.model))
    variables, _ = checkpoint.restore_final(workdir / stage, template, replicated(mesh))
    network = compile_network(make_model(config.model, training=False), variables, settings, mesh)
    return Predictor(
        **vars(network),
        config=config,
        workdir=workdir,
        stage=stage,
        model_id=fingerprint(variables),
        synthetic=trained_on_synthetic(workdir),
    )


def compile_network(model: UNet, variables: dict[str, Any], settings: Predict, mesh: Mesh) -> CompiledNetwork:
    """A network ready to predict, from its variables as training left them, which are on the devices of `mesh`."""
    # One program: piece by piece, every shape among the parameters would be compiled for itself.
    folded = jax.jit(fold, static_argnums=(1, 2), out_shardings=replicated(mesh))
    return CompiledNetwork(
        settings,
        folded(variables, model.encoder, jnp.dtype(model.dtype)),
        mesh,
        jit_probabilities(functools.partial(predict_probabilities, model), mesh),
        jax.jit(each_on_its_device(native_masks, mesh, 3)),
    )


def jit_probabilities(function: Callable[..., jax.Array], mesh: Mesh) -> Any:
    """Compiles (variables, images, mirror) -> probabilities: images split over the devices, variables on each."""
    return jax.jit(function, static_argnums=2, in_shardings=(replicated(mesh), split(mesh)))


def fingerprint(variables: dict[str, Any]) -> str:
    """SHA-256 of a model's variables: their names, types, shapes and values, wherever and however they are stored."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        value = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n".encode())
        digest.update(value.view(np.uint8).data)
    return digest.hexdigest()


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
    logits = cast(jax.Array, model.apply(variables, batch.astype(jnp.float32)[..., None] / 255.0, train=False))
    probability = jax.nn.sigmoid(logits).reshape(views.shape)
    if not mirror:
        return probability.swapaxes(0, 1)
    plain, mirrored = probability[:, 0], probability[:, 1, :, ::-1]
    return jnp.stack([plain, (plain + mirrored) / 2])


def predict_masks(
    network: CompiledNetwork,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    views: Iterable[int] = (0, 1),
) -> Iterator[tuple[Any, dict[int, NativeMask]]]:
    """Masks of images at their native sizes, in compiled batches, as the network's settings want them.

    A mask has the pixels that reach `threshold`. It is emptied when they are fewer than `removal_threshold` or, with
    `top_threshold` and `top_area` (`jaxpneumo thresholds` chooses them), when fewer than the latter reach the former;
    areas are in pixels of a 1024x1024 image. Removing single components is left to `postprocess.remove_small`.

    Args:
      network: of `load_predictor` or `compile_network`.
      images: (key, uint8 (S, S) at the settings' size, (native height, native width)) each.
      views: which masks are wanted: 0 without, 1 with flip TTA.

    Yields:
      (key, {view: mask}) in the order of the stream.
    """
    settings, views = network.settings, tuple(views)
    thresholds, areas = [settings.threshold], [settings.removal_threshold]
    if settings.top_threshold is not None and settings.top_area is not None:
        thresholds.append(settings.top_threshold)
        areas.append(settings.top_area)

    def native(batch: Batch) -> dict[int, tuple[jax.Array, jax.Array]]:
        smallest = np.zeros((settings.batch_size, len(areas)), np.int32)
        for i, (_, size) in enumerate(zip(batch.keys, batch.sizes, strict=True)):
            smallest[i] = [pixels_at_least(area, *size) for area in areas]
        return {
            view: network.native_masks(batch.probability[view], batch.grid, smallest, np.array(thresholds, np.float32))
            for view in views
        }

    for key, size, found in predict_native(network, images, 1 in views, native):
        yield key, {view: NativeMask(bits, *size, int(area)) for view, (bits, area) in found.items()}


@dataclass(frozen=True)
class Batch:
    """Probabilities of one batch, on the device.

    Attributes:
      keys: of its images; fewer than B in a batch that is not full.
      sizes: (native height, native width) of each.
      probability: float32 (1 or 2, B, S, S), as `predict_probabilities` gives it.
      grid: of the B images' native sizes.
    """

    keys: list[Any]
    sizes: list[tuple[int, int]]
    probability: jax.Array
    grid: Grid


def predict_native(
    network: CompiledNetwork,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    mirror: bool,
    native: Callable[[Batch], Any],
) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    """What `native` makes of images' probabilities, in compiled batches.

    Args:
      network: of `load_predictor` or `compile_network`.
      images: as for `predict_masks`.
      mirror: whether flip TTA is wanted.
      native: of a batch; gives a tree of device arrays with leading axis B, computed on the device.

    Yields:
      (key, (native height, native width), that image's part of the tree, as NumPy arrays) in the order of the stream.
    """
    settings, images = network.settings, iter(images)
    pending: tuple[Batch, Any] | None = None
    while group := list(itertools.islice(images, settings.batch_size)):
        pictures = np.zeros((settings.batch_size, settings.size, settings.size), np.uint8)
        for i, (_, picture, _) in enumerate(group):
            pictures[i] = picture
        sizes = [size for _, _, size in group]
        batch = Batch(
            [key for key, _, _ in group],
            sizes,
            network.probabilities(network.variables, place(pictures, split(network.mesh)), mirror),
            native_grid(sizes, settings.size, settings.batch_size),
        )
        started = batch, native(batch)
        # The batch before is fetched while the device works on this one.
        if pending is not None:
            yield from _fetch(*pending)
        pending = started
    if pending is not None:
        yield from _fetch(*pending)


def _fetch(batch: Batch, tree: Any) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    host = jax.device_get(tree)
    for i, (key, size) in enumerate(zip(batch.keys, batch.sizes, strict=True)):
        yield key, size, jax.tree.map(lambda leaf, i=i: leaf[i], host)

"""Loads a trained run for prediction, with the compiled functions from images to masks at native size.

Two functions run on the device one after another. The first applies the network to all views in one call, at the
config's size. The second resizes to the native sizes and applies the thresholds (`native.py`); the host receives
packed bits. They are separate, so radiographs of another canvas size compile only the small second function.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.model.folding import fold
from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.image_scores import top_means
from jaxpneumo.predict.native import (
    CLASSIFIER,
    GATE,
    Grid,
    NativeMask,
    native_grid,
    native_masks,
    no_numbers,
    pixels_at_least,
    shrink,
)
from jaxpneumo.predict.views import mean_of_views
from jaxpneumo.run.config import Config, Predict, read_config
from jaxpneumo.run.network import make_model
from jaxpneumo.run.provenance import trained_on_synthetic
from jaxpneumo.run.sharding import (
    as_convolved,
    check_batch_size,
    each_on_its_device,
    make_local_mesh,
    place,
    replicated,
    split,
)
from jaxpneumo.run.shared import final_variables
from jaxpneumo.run.state import variable_shapes
from jaxpneumo.run.tta import names as tta_names

# Probabilities (views, B, S, S) of pixels, and (views, B) of images or None, see `predict_outputs`
Outputs = tuple[jax.Array, jax.Array | None]


@dataclass(frozen=True, kw_only=True)
class CompiledNetwork:
    """A network that is ready to predict.

    Attributes:
      settings: the prediction settings.
      variables: {"params", "batch_stats"} on all devices, with folded BatchNorm layers (`model.folding.fold`).
      mesh: the devices.
      outputs: the compiled `predict_outputs`: (variables, uint8 (B, S, S), tta) -> (pixels, images).
      native_masks: the compiled `native.native_masks`.
      gate: a network that decides which images show anything; the others' masks are emptied. None: no such network.
    """

    settings: Predict
    variables: dict[str, Any]
    mesh: Mesh
    outputs: Any
    native_masks: Any
    gate: "CompiledNetwork | None" = None

    def probabilities(self, variables: dict[str, Any], image: Any, tta: bool | str) -> jax.Array:
        """The probabilities of the pixels alone, of `outputs`."""
        return self.outputs(variables, image, tta)[0]


@dataclass(frozen=True, kw_only=True)
class Predictor(CompiledNetwork):
    """The network of a finished run and its origin. The settings are those of the run, unless a command changes them.

    Attributes:
      config: the run's config.
      workdir: the run's folder.
      stage: the stage that trained these weights, the run's last.
      model_id: `fingerprint` of the weights at the end of training.
      synthetic: True if the run was trained on synthetic radiographs, which show no patients.
      weighted_runs: the runs and weights of an ensemble (`ensemble.load_ensemble`); `workdir` is then the first run.
        Empty for a single run.
      runtime: what computes the network; "" is JAX, and others are `onnx_predictor.OnnxPredictor`'s.
      bands: limits of the certainty that lie beside the weights; None for those of the run's evaluation.
    """

    config: Config
    workdir: Path
    stage: str
    model_id: str
    synthetic: bool = False
    weighted_runs: tuple[tuple[Path, float], ...] = ()
    runtime: str = ""
    bands: Bands | None = None

    def find(
        self, images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]], probability: bool
    ) -> Iterator[tuple[Any, NativeMask, float, np.ndarray | None]]:
        """Predicts radiographs in compiled batches.

        Args:
          images: see `predict_masks`.
          probability: whether the probabilities at the network's size are asked for.

        Yields:
          (key, mask as `predict_masks` makes it, score of the whole image, float32 (S, S) or None) in the order of
          `images`.

        Raises:
          InputError: a probability is not a finite number, see `predict_native`.
        """
        view = int(bool(self.settings.tta))

        def native(batch: Batch) -> dict[str, Any]:
            # A mask has the classifier's probability too if there is one, which then is the score.
            found: dict[str, Any] = {"mask": masks_of(self, batch, [view])[view]}
            if batch.finding is None:
                found["top_mean"] = top_means(batch.probability[view], self.settings.size)
            return {**found, "probability": batch.probability[view]} if probability else found

        for key, size, found in predict_native(self, images, self.settings.tta, native):
            mask = _native_mask(found["mask"], size)
            score = float(found["top_mean"]) if mask.finding is None else mask.finding
            yield key, mask, score, found.get("probability")


def load_predictor(workdir: Path | str, batch_size: int | None = None) -> Predictor:
    """Restores a run's final weights. It reads only the run's folder.

    Args:
      workdir: folder of a finished run, or a shared folder (`run.shared`).
      batch_size: replaces the run's own predict.batch_size. A batch with fewer images than devices uses one device
        per image.

    Raises:
      InputError: the folder is not a run, its last stage is not finished, or the batch size is not a multiple of the
        number of devices.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    settings = config.predict if batch_size is None else replace(config.predict, batch_size=batch_size)
    stage = config.stages[-1].name
    mesh = make_local_mesh(batch_size)
    check_batch_size(settings.batch_size, mesh.size, "predict")
    template = variable_shapes(make_model(config.model))
    variables = final_variables(workdir, stage, template, replicated(mesh))
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
    """Makes a network ready to predict. `variables` come from training and are on the devices of `mesh`."""
    folded, outputs, masks = _functions(cast(Hashable, model), mesh)
    variables = as_convolved(folded(variables, model.encoder, jnp.dtype(model.dtype)))
    return CompiledNetwork(settings=settings, variables=variables, mesh=mesh, outputs=outputs, native_masks=masks)


@functools.lru_cache(maxsize=4)
def _functions(model: Any, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Of folding, outputs and masks; networks of one kind, as an ensemble's, compile them once."""
    # One program folds all layers. Folding them one by one would compile a program for each parameter shape.
    return (
        jax.jit(fold, static_argnums=(1, 2), out_shardings=replicated(mesh)),
        jit_outputs(functools.partial(predict_outputs, model), mesh),
        jax.jit(each_on_its_device(native_masks, mesh, 3)),
    )


def jit_outputs(function: Callable[..., Outputs], mesh: Mesh) -> Any:
    """Compiles (variables, images, tta) -> outputs. The devices share the images; each has all variables."""
    # A prediction of one image is a hundred short kernels: on a GPU all of them are launched as graphs.
    options = {"xla_gpu_graph_min_graph_size": 1} if jax.default_backend() == "gpu" else None
    return jax.jit(function, static_argnums=2, in_shardings=(replicated(mesh), split(mesh)), compiler_options=options)


def fingerprint(variables: dict[str, Any]) -> str:
    """SHA-256 of the names, types, shapes and values of a model's variables. It does not depend on their storage."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        value = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n".encode())
        digest.update(value.view(np.uint8).data)
    return digest.hexdigest()


def predict_probabilities(model: UNet, variables: dict[str, Any], image: jax.Array, tta: bool | str) -> jax.Array:
    """The probabilities of the pixels alone, of `predict_outputs`."""
    return predict_outputs(model, variables, image, tta)[0]


def predict_outputs(model: UNet, variables: dict[str, Any], image: jax.Array, tta: bool | str) -> Outputs:
    """Computes the probability of pneumothorax for each pixel and image, without and with test-time augmentation (TTA).

    Args:
      model: the network.
      variables: its {"params", "batch_stats"}.
      image: uint8 (B, S, S).
      tta: the views, as `run.tta` has them: True is the image and its mirror image.

    Returns:
      float32 (2, B, S, S): the probabilities of the image, and their mean over all views (`views.mean_of_views`). If
      there is no TTA, only the first: (1, B, S, S). Then the same for whole images, (2, B) or (1, B); None if the
      network has no classifier.
    """
    of_views: list[jax.Array] = []  # (B, views of one size); an image's own view is the first of all

    def predict(batch: jax.Array) -> jax.Array:
        pictures = batch.astype(jnp.float32)[..., None] / 255.0
        logits, finding = cast(Outputs, model.apply(variables, pictures, train=False, method="outputs"))
        if finding is not None:
            of_views.append(jax.nn.sigmoid(finding).reshape(image.shape[0], -1))
        return jax.nn.sigmoid(logits)

    names = tta_names(tta)
    pixels = jnp.stack(mean_of_views(predict, image, names) if names else [predict(image)])
    if not of_views:
        return pixels, None
    views = jnp.concatenate(of_views, axis=1)
    return pixels, jnp.stack([views[:, 0], views.mean(axis=1)] if names else [views[:, 0]])


def predict_masks(
    network: CompiledNetwork,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    views: Iterable[int] = (0, 1),
) -> Iterator[tuple[Any, dict[int, NativeMask]]]:
    """Predicts masks at native size in compiled batches, with the network's settings.

    A mask has all pixels with a probability of at least `threshold`. It is emptied if its area is below
    `removal_threshold`. With `top_threshold` and `top_area` (`jaxpneumo thresholds` chooses them), it is also emptied
    if fewer than `top_area` pixels reach `top_threshold`. It is emptied, too, if the network's gate outlines nothing,
    or if the classifier's probability is below `classifier_threshold`. Areas are in pixels of a 1024x1024 image. This
    function does not remove single components;
    `postprocess.remove_small` does.

    Args:
      network: the result of `load_predictor` or `compile_network`.
      images: for each image, (key, uint8 (S, S) at the settings' size, (native height, native width)).
      views: the masks to return: 0 without TTA, 1 with the settings' TTA (flip TTA if they have none).

    Yields:
      (key, {view: mask}) in the order of `images`.
    """
    views = tuple(views)

    def native(batch: Batch) -> dict[int, dict[str, jax.Array]]:
        return masks_of(network, batch, views)

    for key, size, found in predict_native(network, images, 1 in views and (network.settings.tta or True), native):
        yield key, {view: _native_mask(of_view, size) for view, of_view in found.items()}


def masks_of(network: CompiledNetwork, batch: "Batch", views: Iterable[int]) -> dict[int, dict[str, jax.Array]]:
    """The masks of a batch as `predict_masks` says, for `_native_mask`.

    By view, the "bits" and "area" of a `NativeMask`; "finding" if there is a classifier; and, where these may empty a
    mask, GATE and CLASSIFIER: bool (B,), whether it did.
    """
    levels = _levels(network.settings, batch.sizes, len(batch.pictures))

    def masks(view: int) -> dict[str, jax.Array]:
        bits, area = network.native_masks(batch.probability[view], batch.grid, *levels)
        found = {} if batch.finding is None else {"finding": batch.finding[view]}
        deciders = {GATE: batch.by_gate, CLASSIFIER: kept_by_classifier(network.settings, batch, view)}
        for name, kept in deciders.items():
            if kept is not None:
                found[name] = ~kept & (area > 0)
                bits, area = jnp.where(kept[:, None, None], bits, 0), jnp.where(kept, area, 0)
        return {**found, "bits": bits, "area": area}

    return {view: masks(view) for view in views}


def _native_mask(found: dict[str, Any], size: tuple[int, int]) -> NativeMask:
    """One image's mask of `masks_of`, fetched to the host."""
    emptied_by = next((name for name in (GATE, CLASSIFIER) if found.get(name, False)), "")
    finding = float(found["finding"]) if "finding" in found else None
    return NativeMask(found["bits"], *size, int(found["area"]), finding, emptied_by)


def _levels(settings: Predict, sizes: list[tuple[int, int]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """For `native_masks`: the smallest areas (count, T) in native pixels, and the probability thresholds (T,)."""
    thresholds, areas = [settings.threshold], [settings.removal_threshold]
    if settings.top_threshold is not None and settings.top_area is not None:
        thresholds.append(settings.top_threshold)
        areas.append(settings.top_area)
    smallest = np.zeros((count, len(areas)), np.int32)
    for i, size in enumerate(sizes):
        smallest[i] = [pixels_at_least(area, *size) for area in areas]
    return smallest, np.array(thresholds, np.float32)


def _by_gate(gate: CompiledNetwork, pictures: jax.Array, sizes: list[tuple[int, int]]) -> tuple[jax.Array, jax.Array]:
    """In which images (B,) a gate outlines anything, by its own size, thresholds and TTA, and `_are_numbers`: bool."""
    settings = gate.settings
    if settings.size < pictures.shape[-1]:
        pictures = jax.jit(shrink, static_argnums=1, out_shardings=split(gate.mesh))(pictures, settings.size)
    probability, finding = gate.outputs(gate.variables, pictures, settings.tta)
    grid = native_grid(sizes, settings.size, len(pictures))
    kept = gate.native_masks(probability[-1], grid, *_levels(settings, sizes, len(pictures)))[1] > 0
    if finding is not None and settings.classifier_threshold is not None:
        kept = kept & (finding[-1] >= settings.classifier_threshold)
    return kept, _are_numbers(probability, finding)


@jax.jit
def _are_numbers(probability: jax.Array, finding: jax.Array | None) -> jax.Array:
    """Which images of `predict_outputs` (B,) have finite probabilities alone: bool."""
    finite = jnp.isfinite(probability).all((0, 2, 3))
    return finite if finding is None else finite & jnp.isfinite(finding).all(0)


def kept_by_classifier(settings: Predict, batch: "Batch", view: int) -> jax.Array | None:
    """Which images of a batch (B,) the network's own classifier keeps: bool; None if it has no threshold."""
    if settings.classifier_threshold is None or batch.finding is None:
        return None
    return batch.finding[view] >= settings.classifier_threshold


@dataclass(frozen=True)
class Batch:
    """The probabilities of one batch, on the device.

    Attributes:
      keys: one key per image; fewer than B if the batch is not full.
      sizes: (native height, native width) of each image.
      pictures: uint8 (B, S, S), on the device.
      probability: float32 (1 or 2, B, S, S), of `predict_outputs`.
      finding: float32 (1 or 2, B), of the same; None without a classifier.
      grid: the grid for the native sizes of the B images.
      by_gate: bool (B,), the images in which the network's gate outlines anything; None without a gate.
    """

    keys: list[Any]
    sizes: list[tuple[int, int]]
    pictures: jax.Array
    probability: jax.Array
    finding: jax.Array | None
    grid: Grid
    by_gate: jax.Array | None = None


def predict_native(
    network: CompiledNetwork,
    images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]],
    tta: bool | str,
    native: Callable[[Batch], Any],
) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    """Predicts probabilities in compiled batches and applies `native` to each batch.

    Args:
      network: the result of `load_predictor` or `compile_network`.
      images: see `predict_masks`.
      tta: see `predict_outputs`.
      native: function of a batch. It computes on the device and returns a tree of arrays with leading axis B.

    Yields:
      (key, (native height, native width), the image's part of the tree as NumPy arrays) in the order of `images`.

    Raises:
      InputError: a probability of the network or of its gate is not a finite number. Comparing it with a threshold
        would make an empty mask of it.
    """
    settings, images = network.settings, iter(images)
    pending: tuple[Batch, Any] | None = None
    while group := list(itertools.islice(images, settings.batch_size)):
        pictures = np.zeros((settings.batch_size, settings.size, settings.size), np.uint8)
        for i, (_, picture, _) in enumerate(group):
            pictures[i] = picture
        sizes = [size for _, _, size in group]
        placed = place(pictures, split(network.mesh))
        probability, finding = network.outputs(network.variables, placed, tta)
        by_gate, of_gate = (None, None) if network.gate is None else _by_gate(network.gate, placed, sizes)
        batch = Batch(
            [key for key, _, _ in group],
            sizes,
            placed,
            probability,
            finding,
            native_grid(sizes, settings.size, settings.batch_size),
            by_gate,
        )
        numbers = {"network": _are_numbers(probability, finding), "gate": of_gate}
        started = batch, (numbers, native(batch))
        # Fetches the previous batch while the device computes this one.
        if pending is not None:
            yield from _fetch(*pending)
        pending = started
    if pending is not None:
        yield from _fetch(*pending)


def _fetch(batch: Batch, tree: Any) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    numbers, host = jax.device_get(tree)
    for which, finite in numbers.items():
        if finite is not None and not finite[: len(batch.keys)].all():
            raise no_numbers(which)
    for i, (key, size) in enumerate(zip(batch.keys, batch.sizes, strict=True)):
        yield key, size, jax.tree.map(lambda leaf, i=i: leaf[i], host)

"""One pass over the images, which takes all measurements of each image at native size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.data import rle
from jaxpneumo.data.dataset import Index
from jaxpneumo.evaluate.modes import GATED, IMAGE_SCORES, MODES, VIEWS, own_mode
from jaxpneumo.predict.certainty import CLASSIFIER
from jaxpneumo.predict.image_scores import image_scores, top_pixels
from jaxpneumo.predict.infer import Batch, Predictor, kept_by_classifier, predict_native
from jaxpneumo.predict.native import Grid, pixels_at_least, to_native
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.process.progress import COMPILING, progress_bar
from jaxpneumo.score import metrics
from jaxpneumo.score.lesions import lesion_counts
from jaxpneumo.score.scores import DISTANCES, REGIONS
from jaxpneumo.score.surface import surface_distances
from jaxpneumo.score.threshold_counts import (
    AREAS,
    THRESHOLDS,
    ThresholdCounts,
    count_at_thresholds,
    count_components,
)

COUNTS = ("area", "tp", "component_area", "component_tp")  # of `ThresholdCounts`

Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """The measurements of one pass, for N images in the order of the given rows.

    Attributes:
      modes: for each mode, the columns tp, fp, fn, REGIONS and DISTANCES, (N,) each. With a gate or a
        classifier's threshold, the own mode is there once more, with them.
      mean_shape: tp, fp, fn if the mean shape is predicted for every image; None without a mean shape.
      image_scores: float64 (N,) by view, then by name in IMAGE_SCORES, and CLASSIFIER if there is one.
      counts: counts at many thresholds; with a gate, of the images that it leaves empty there are no pixels.
      codes: run-length codes of the masks with the run's own settings and gate, by image id.
      kept: bool (N,), the images that gate and classifier keep; None without a gate and a classifier's threshold.
    """

    modes: dict[str, Table]
    mean_shape: Table | None
    image_scores: dict[str, Table]
    counts: ThresholdCounts
    codes: dict[str, str]
    kept: np.ndarray | None = None


def measure(
    predictor: Predictor,
    images: np.ndarray,
    index: Index,
    labels: dict[str, str],
    rows: np.ndarray,
    spacing: np.ndarray,
    mean_shape: np.ndarray | None = None,
    quiet: bool = False,
    teams: Iterable[tuple[Predictor, np.ndarray]] | None = None,
) -> Measured:
    """Predicts the masks of images and measures them.

    Args:
      predictor: the result of `load_predictor` or `ensemble.combine`.
      images: uint8 (N, S, S) of the prepared data set.
      index, labels: index and labels of the same data set.
      rows: rows of the images to measure.
      spacing: (N, 2), distances between rows and between columns in millimetres; nan if unknown.
      mean_shape: float32 (S', S'); the mean shape is where the values are >= 0.5, see `baseline`.
      quiet: shows no progress bar.
      teams: predictors with the settings of `predictor` and the rows that each predicts in its place, all `rows`
        together; None: `predictor` predicts all.
    """
    settings = predictor.settings
    threshold = jnp.float32(settings.threshold)
    own_view = int(bool(settings.tta))
    shapes: dict[tuple[int, int], np.ndarray] = {}
    truths: dict[int, np.ndarray] = {}

    def stream(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, tuple[int, int]]]:
        for row in rows.tolist():
            yield row, images[row], (int(index.height[row]), int(index.width[row]))

    @jax.jit
    def at_native_size(probability: jax.Array, grid: Grid, truth: jax.Array) -> dict[str, Any]:
        native = [to_native(view, grid) for view in probability]
        reached, area, tp = count_at_thresholds(native[own_view], truth)
        return {
            "masks": [jnp.packbits(view >= threshold, axis=-1) for view in native],
            "scores": [image_scores(view, top_pixels(settings.size)) for view in probability],
            "top_area": [(view >= (settings.top_threshold or 0.0)).sum((1, 2)) for view in native],
            "reached": reached,
            "area": area,
            "tp": tp,
        }

    def native(batch: Batch) -> dict[str, Any]:
        packed = np.zeros((*batch.grid.row.shape, batch.grid.column.shape[1] // 8), np.uint8)
        for i, (row, size) in enumerate(zip(batch.keys, batch.sizes, strict=True)):
            truths[row] = rle.decode(labels[str(index.image_id[row])], *size)
            bits = np.packbits(truths[row], axis=-1)
            packed[i, : bits.shape[0], : bits.shape[1]] = bits
        found = at_native_size(batch.probability, batch.grid, packed)
        if batch.finding is not None:
            scores = [jnp.column_stack(pair) for pair in zip(found["scores"], batch.finding, strict=True)]
            found = {**found, "scores": scores}
        if batch.by_gate is not None:
            found["by_gate"] = batch.by_gate
        own = kept_by_classifier(settings, batch, own_view)
        return found if own is None else {**found, "by_classifier": own}

    mode = own_mode(settings)
    records: dict[int, dict[str, Any]] = {}
    codes: dict[str, str] = {}
    predicted = (
        predict_native(one, stream(own), settings.tta or True, native) for one, own in teams or [(predictor, rows)]
    )
    bar = progress_bar(chain.from_iterable(predicted), len(rows), description="evaluate", quiet=quiet)
    bar.set_postfix_str(COMPILING)
    for row, size, found in bar:
        bar.set_postfix_str("", refresh=False)
        truth, image_id = truths.pop(row), str(index.image_id[row])
        record = {"truth_area": int(truth.sum()), "area": found["area"], "tp": found["tp"], "scores": found["scores"]}
        record["component_area"], record["component_tp"] = count_components(
            found["reached"][: size[0], : size[1]], truth
        )
        deciders = [name for name in ("by_gate", "by_classifier") if name in found]
        gated = not all(found[name] for name in deciders)
        if not found.get("by_gate", True):
            record |= {name: np.zeros_like(record[name]) for name in COUNTS}
        unpacked = [np.unpackbits(bits[: size[0]], axis=-1, count=size[1]) for bits in found["masks"]]
        for view, mask in enumerate(unpacked):
            kept = remove_small(mask, settings.removal_threshold, settings.removal_rule)
            if settings.top_area is not None and found["top_area"][view] < pixels_at_least(settings.top_area, *size):
                kept = np.zeros_like(mask)
            plain = measure_mask(mask, truth, spacing[row])
            record[VIEWS[view]] = plain
            removed = ("removal", "tta_removal")[view]
            record[removed] = plain if kept is mask else measure_mask(kept, truth, spacing[row])
            if view == own_view:
                codes[image_id] = rle.EMPTY if gated else rle.encode(kept)
        if deciders:
            record["kept"] = not gated
            nothing = np.zeros(size, np.uint8)
            record[mode + GATED] = measure_mask(nothing, truth, spacing[row]) if gated else record[mode]
        if mean_shape is not None:
            if size not in shapes:
                shapes[size] = (cv2.resize(mean_shape, size[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5).view(
                    np.uint8
                )
            record["mean_shape"] = dict(zip(("tp", "fp", "fn"), metrics.counts(shapes[size], truth), strict=True))
        records[row] = record
    return _columns([records[row] for row in rows.tolist()], index, rows, codes, own_view)


def measure_mask(mask: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Measures a mask against its truth, both uint8 (H, W) of 0 and 1. Distances are nan if either mask is empty."""
    tp, fp, fn = (int(count) for count in metrics.counts(mask, truth))
    columns = {"tp": tp, "fp": fp, "fn": fn, **dict(zip(REGIONS, lesion_counts(mask, truth), strict=True))}
    in_pixels, in_mm = (np.nan, np.nan), (np.nan, np.nan)
    if tp + fp and tp + fn:
        in_pixels = surface_distances(mask, truth)
        if np.isfinite(spacing).all():
            in_mm = surface_distances(mask, truth, tuple(spacing))
    return columns | dict(zip(DISTANCES, (*in_pixels, *in_mm), strict=True))


def _columns(
    records: list[dict[str, Any]], index: Index, rows: np.ndarray, codes: dict[str, str], own_view: int
) -> Measured:
    def column(name: str) -> np.ndarray:
        return np.stack([record[name] for record in records]).astype(np.int64)

    def table(name: str) -> Table:
        return {key: np.array([record[name][key] for record in records]) for key in records[0][name]}

    scores = np.array([record["scores"] for record in records], float)  # (N, view, score)
    names = (*IMAGE_SCORES, CLASSIFIER)[: scores.shape[-1]]
    first = records[0]
    return Measured(
        modes={mode: table(mode) for mode in (*MODES, *(key for key in first if key.endswith(GATED)))},
        mean_shape=table("mean_shape") if "mean_shape" in first else None,
        image_scores={view: {name: scores[:, v, s] for s, name in enumerate(names)} for v, view in enumerate(VIEWS)},
        counts=ThresholdCounts(
            thresholds=THRESHOLDS,
            areas=AREAS,
            image_id=index.image_id[rows],
            pixels=index.height[rows] * index.width[rows],
            **{name: column(name) for name in ("truth_area", *COUNTS)},
            finding=scores[:, own_view, names.index(CLASSIFIER)] if CLASSIFIER in names else None,
        ),
        codes=codes,
        kept=np.array([record["kept"] for record in records]) if "kept" in first else None,
    )

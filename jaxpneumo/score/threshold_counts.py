"""Counts of pixels at many probability and removal thresholds, made in the one pass of the evaluation.

For each image and each threshold the device counts the pixels inside and outside the truth. Later steps
need only these counts, no pixels. The rule by component needs the regions themselves. The host finds them
threshold by threshold in a byte map, inside the bounding box of each.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import cv2
import numpy as np

from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError

# What needs JAX is in the function that a device runs: whoever reads tables does without.
if TYPE_CHECKING:
    import jax

# Probabilities, for the lower (B-TH) and for the top threshold
THRESHOLDS = np.array([*(k / 20 for k in range(1, 20)), 0.99], np.float32)
# Removal thresholds (R-TH) in pixels of a 1024x1024 image: finest where the papers' 2048 lies
AREAS = np.array(
    [0, 128, 256, 512, *range(768, 2049, 256), *range(2560, 4097, 512), *range(5120, 8193, 1024), 10240, 12288],
    np.int64,
)


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts of N images at K thresholds and M areas, of the view (with or without TTA) that the run predicts with.

    Attributes:
      thresholds: float32 (K,) probabilities, ascending.
      areas: int64 (M,) removal thresholds in pixels of a 1024x1024 image, ascending.
      image_id: str (N,).
      pixels: int64 (N,) native height * width.
      truth_area: int64 (N,) native pixels.
      area, tp: int64 (N, K) pixels >= the threshold, and those of them that are true.
      component_area, component_tp: int64 (N, K, M) the same after removing the components below each area.
      finding: float64 (N,), a classifier's probability that the image shows anything; None without a classifier.
    """

    thresholds: np.ndarray
    areas: np.ndarray
    image_id: np.ndarray
    pixels: np.ndarray
    truth_area: np.ndarray
    area: np.ndarray
    tp: np.ndarray
    component_area: np.ndarray
    component_tp: np.ndarray
    finding: np.ndarray | None = None


def count_at_thresholds(native: "jax.Array", truth: "jax.Array") -> "tuple[jax.Array, jax.Array, jax.Array]":
    """Counts native pixels at all THRESHOLDS; to be compiled.

    Args:
      native: float32 (B, H, W) probabilities, as `native.to_native` gives them: below all thresholds beyond the images.
      truth: uint8 (B, H, W / 8), bits along the rows.

    Returns:
      uint8 (B, H, W): how many of the thresholds each pixel reaches; int32 (B, K) pixels that reach each
      threshold, and those of them in the truth.
    """
    import jax.numpy as jnp

    reached = jnp.asarray(sum((native >= threshold).astype(jnp.uint8) for threshold in THRESHOLDS))
    true = jnp.unpackbits(truth, axis=-1)
    # One histogram over image, truth and threshold; sums at each threshold one by one take six times as long on a CPU.
    batch, bins = len(native), len(THRESHOLDS) + 1
    image = jnp.arange(batch)[:, None, None]
    place = (2 * image + true) * bins + reached
    histogram = jnp.zeros(batch * 2 * bins, jnp.int32).at[place.ravel()].add(1).reshape(batch, 2, bins)
    at_least = jnp.cumsum(histogram[..., ::-1], axis=-1)[..., ::-1][..., 1:]
    return reached, at_least.sum(axis=1), at_least[:, 1]


def count_components(reached: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of one image after the rule by component, for all THRESHOLDS and AREAS.

    Args:
      reached: uint8 (H, W) of `count_at_thresholds`.
      truth: uint8 (H, W) 0/1.

    Returns:
      int64 (K, M) kept pixels and true kept pixels; as `postprocess.remove_small` keeps them.
    """
    area = np.zeros((len(THRESHOLDS), len(AREAS)), np.int64)
    tp = np.zeros_like(area)
    smallest = AREAS * reached.size / NATIVE_AREA
    for k in range(int(reached.max())):
        mask = (reached > k).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        box = np.s_[y : y + h, x : x + w]
        reached, truth = reached[box], truth[box]
        _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
        size = statistics[1:, cv2.CC_STAT_AREA].astype(np.int64)
        true = np.bincount(regions[truth != 0], minlength=len(size) + 1)[1:]
        kept = size[None, :] >= smallest[:, None]
        area[k], tp[k] = kept @ size, kept @ true
    return area, tp


def pool(tables: Sequence[ThresholdCounts]) -> tuple[ThresholdCounts, np.ndarray]:
    """The images of several tables by their ids, so that the order of the tables does not matter.

    Returns:
      The table of all, and (N,) the places of its images in the tables one after the other. One table stays as it is.

    Raises:
      InputError: thresholds or areas differ, or some have a classifier's scores and others none.
    """
    first = tables[0]
    for other in tables[1:]:
        if not (np.array_equal(first.thresholds, other.thresholds) and np.array_equal(first.areas, other.areas)):
            raise InputError(
                "The evaluations counted at different thresholds: run `jaxpneumo evaluate` again for all runs."
            )
    with_finding = {table.finding is not None for table in tables}
    if len(with_finding) > 1:
        raise InputError("Some of the runs have a classifier and others none: choose for each run alone.")
    per_image = [field.name for field in fields(ThresholdCounts) if field.name not in ("thresholds", "areas")]
    if with_finding == {False}:
        per_image.remove("finding")
    joined = {name: np.concatenate([getattr(table, name) for table in tables]) for name in per_image}
    place = np.argsort(joined["image_id"], kind="stable") if len(tables) > 1 else np.arange(len(first.image_id))
    columns = {name: column[place] for name, column in joined.items()}
    return ThresholdCounts(first.thresholds, first.areas, **columns), place


def write_counts(path: Path, counts: ThresholdCounts) -> None:
    """Writes the tables as a compressed npz file, atomically."""
    with write_atomically(path, "wb") as file:
        columns = {field.name: getattr(counts, field.name) for field in fields(ThresholdCounts)}
        np.savez_compressed(file, **{name: column for name, column in columns.items() if column is not None})


def read_counts(path: Path) -> ThresholdCounts:
    """Reads the tables. Raises InputError when they are missing or damaged."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the counts at many thresholds come from an evaluation. Run "
            f"`jaxpneumo evaluate --workdir {path.parent.parent}` first."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {field.name: field.name for field in fields(ThresholdCounts)}
            if "levels" in file:  # the name in the files of earlier evaluations
                names["thresholds"] = "levels"
            if "finding" not in file:
                del names["finding"]
            return ThresholdCounts(**{name: file[saved] for name, saved in names.items()})
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}). Run `jaxpneumo evaluate` again.") from error

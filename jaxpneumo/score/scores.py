"""Every score as a ratio of two sums over images.

A mean over images, a mean over positives, a share of regions: each has a numerator and a denominator for every image.
Both are summed and divided once. Bootstrap, strata and paired tests therefore need not know the scores: they weight,
select or exchange the terms of images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpneumo.score import metrics

Ratios = dict[Any, tuple[np.ndarray, np.ndarray]]

DISTANCES = ("hausdorff95_px", "surface_distance_px", "hausdorff95_mm", "surface_distance_mm")
UNBOUNDED = ("false_regions_per_image", *DISTANCES)  # all other scores are between 0 and 1
REGIONS = ("lesions", "lesions_detected", "regions", "regions_real")


def ratios(table: Mapping[str, np.ndarray]) -> Ratios:
    """The terms of all scores that a table of images allows.

    Args:
      table: (N,) a column: tp, fp, fn in pixels; and, where they were measured, REGIONS (numbers of regions)
        and DISTANCES (nan where there is none).

    Returns:
      name -> (numerator (N,), denominator (N,)) float64:
        dice, iou: mean over images; dice_positive, iou_positive: over images with pneumothorax; dice_negative:
        over the others
        sensitivity, specificity: share of positive images with, of negative images without a prediction
        (specificity is dice_negative under its other name)
        lesion_sensitivity: regions of the truth that were met; lesion_precision: predicted regions that meet
        the truth; false_regions_per_image: predicted ones that do not, per image
        DISTANCES: mean over the positive images with a prediction; the others have no distance
    """
    tp, fp, fn = (np.asarray(table[name], np.int64) for name in ("tp", "fp", "fn"))
    positive, found = tp + fn > 0, tp + fp > 0
    dices, ious = metrics.dice(tp, fp, fn), metrics.iou(tp, fp, fn)
    every = np.ones(len(tp))
    pairs = {
        "dice": (dices, every),
        "iou": (ious, every),
        "dice_positive": (dices * positive, positive),
        "iou_positive": (ious * positive, positive),
        "dice_negative": (dices * ~positive, ~positive),
        "sensitivity": (found & positive, positive),
        "specificity": (~found & ~positive, ~positive),
    }
    if "lesions" in table:
        lesions, detected, regions, real = (table[name] for name in REGIONS)
        pairs["lesion_sensitivity"] = (detected, lesions)
        pairs["lesion_precision"] = (real, regions)
        pairs["false_regions_per_image"] = (regions - real, every)
    for name in DISTANCES:
        if name in table:
            pairs[name] = (np.nan_to_num(table[name]), np.isfinite(table[name]))
    return {name: (np.asarray(a, float), np.asarray(b, float)) for name, (a, b) in pairs.items()}


def values(pairs: Ratios) -> dict[str, float | None]:
    """The scores; None where no image has a term (JSON has no nan)."""
    return {name: float(a.sum() / b.sum()) if b.sum() else None for name, (a, b) in pairs.items()}


def select(pairs: Ratios, images: np.ndarray) -> Ratios:
    """The same scores over some of the images: (N,) bool."""
    return {name: (a * images, b * images) for name, (a, b) in pairs.items()}

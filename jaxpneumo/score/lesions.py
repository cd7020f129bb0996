"""Lesion-wise detection: which regions of the truth were found, and which predicted regions are real."""

import cv2
import numpy as np


def lesion_counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, int]:
    """Counts 8-connected regions of one image; two regions meet when they share at least one pixel.

    Args:
      prediction: (H, W) of 0 and 1, uint8.
      truth: the same shape.

    Returns:
      Regions of the truth, those of them that a prediction meets, predicted regions, those of them that meet
      the truth.
    """
    lesions, detected = _met(truth, prediction)
    regions, real = _met(prediction, truth)
    return lesions, detected, regions, real


def _met(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    if not mask.any():
        return 0, 0
    count, regions = cv2.connectedComponents(mask, connectivity=8)
    met = np.unique(regions[other != 0])
    return count - 1, int(np.count_nonzero(met))

"""Postprocessing of thresholded masks: the removal threshold (R-TH of the papers)."""

from typing import cast

import cv2
import numpy as np

from jaxpneumo.process.errors import InputError

NATIVE_AREA = 1024 * 1024  # removal thresholds are areas in pixels of the challenge's 1024x1024 images
RULES = ("image", "component")


def remove_small(mask: np.ndarray, threshold: int, rule: str = "image") -> np.ndarray:
    """Removes small predictions, which are probably false.

    Args:
      mask: (H, W) of 0 and 1, uint8 or bool.
      threshold: area in pixels of a 1024x1024 image; scaled by H * W / 1024² for other sizes. Areas *below* it are
        removed, so 0 removes nothing. The papers use 2048.
      rule: "image" empties the mask if its whole area is below the threshold (2ST-UNet, section 5.1). "component"
        removes each 8-connected component with an area below the threshold (section 4.3).

    Returns:
      (H, W) mask of the same type: `mask` itself if nothing is removed, else a new array.

    Raises:
      InputError: the rule is unknown, the threshold is negative, or the mask is not (H, W).
    """
    if rule not in RULES:
        raise InputError(f"removal rule {rule!r} is unknown; use one of: {', '.join(RULES)}.")
    if threshold < 0:
        raise InputError(f"removal threshold {threshold} is negative; give an area in pixels, 0 to remove nothing.")
    if mask.ndim != 2:
        raise InputError(f"a mask must be (height, width), not {mask.shape}; pass a batch's masks one by one.")

    area = np.count_nonzero(mask)
    smallest = threshold * mask.size / NATIVE_AREA
    if area == 0 or smallest == 0:
        return mask
    if area < smallest:
        return np.zeros_like(mask)  # for both rules: no component is larger than the whole mask
    if rule == "image":
        return mask

    _, components, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = statistics[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False  # component 0 is the background
    return keep[cast(np.ndarray, components)].astype(mask.dtype)

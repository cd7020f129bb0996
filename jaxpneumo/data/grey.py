"""Stored values of a radiograph to 8-bit grey: windows and stretching."""

import numpy as np


def window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255.

    Args:
      values: (H, W), after the modality transformation.
      center, width: of the window, in the unit of the values.
      function: "LINEAR", "LINEAR_EXACT" or "SIGMOID"; others count as "LINEAR".

    Returns:
      (H, W) uint8.
    """
    values = values.astype(np.float32)
    if function == "SIGMOID":
        return to_uint8(255 / (1 + np.exp(-4 * (values - center) / width)))
    if function == "LINEAR_EXACT":
        return to_uint8(((values - center) / width + 0.5) * 255)
    return to_uint8(((values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5) * 255)


def stretch(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """The smallest and largest of the used values become 0 and 255; a constant image becomes 0.

    Args:
      values: (H, W).
      use: (H, W) bool, the values that count.

    Returns:
      (H, W) uint8.
    """
    if not use.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[use].min()), float(values[use].max())
    return to_uint8((values.astype(np.float32) - low) * (255 / max(high - low, 1e-6)))


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Values rounded, with those below 0 and above 255 at the ends; ValueError where there are none (nan)."""
    if np.isnan(values).any():
        raise ValueError("the header's transformations lead to no number")
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)

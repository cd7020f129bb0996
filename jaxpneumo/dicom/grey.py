"""Turns values into 8-bit grey: windows, stretching, and the test for pictures that show nothing."""

import numpy as np

NEARLY_ALL = 0.999  # of the pixels; a radiograph has noise
UNEVEN = (
    "few pixels, as of a marker, take more than half of the grey levels; the others are all dark or all bright, and a "
    "finding may be missed"
)


def window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255.

    Args:
      values: after the modality transformation.
      center, width: of the window, in the unit of the values; the width above 0.
      function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Returns:
      uint8, of the values' shape.
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return to_uint8(255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return to_uint8(((values - center) / width + 0.5) * 255)
    if width == 1:  # a step: the formula would divide by 0
        return np.where(values > center - 0.5, 255, 0).astype(np.uint8)
    return to_uint8(((values - (center - 0.5)) / (width - 1) + 0.5) * 255)


def stretch(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """The smallest and largest of the used values become 0 and 255.

    Args:
      values: any shape.
      use: bool of the same shape, the values that count; at least two different ones.

    Returns:
      uint8, of the values' shape.
    """
    low, high = float(values[use].min()), float(values[use].max())
    return to_uint8((values.astype(np.float64) - low) * (255 / (high - low)))


def is_uneven(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether `stretch` leaves less than half of the grey levels to the middle NEARLY_ALL of the pixels.

    Args:
      values: (N,), different ones.
      counts: (N,), how many pixels have each.
    """
    order = np.argsort(values)
    ordered, share = values[order], np.cumsum(counts[order]) / counts.sum()
    rest = (1 - NEARLY_ALL) / 2
    low, high = ordered[np.searchsorted(share, rest)], ordered[np.searchsorted(share, 1 - rest)]
    used = values[counts > 0]
    return bool(2 * (high - low) < used.max() - used.min())


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Values rounded, with those below 0 and above 255 at the ends; ValueError where there are none (nan)."""
    if np.isnan(values).any():
        raise ValueError("the header's transformations lead to no number")
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def is_one(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether nearly all pixels have the same value, so that there is nothing to see.

    Args:
      values: (N,), different ones or not.
      counts: (N,), how many pixels have each.
    """
    present = counts > 0
    _, which = np.unique(values[present], return_inverse=True)
    pixels = np.bincount(which, weights=counts[present]) if present.any() else np.ones(1)
    return bool(pixels.max() >= NEARLY_ALL * pixels.sum())


def image_is_one(image: np.ndarray) -> bool:
    """The same of a picture, (H, W) uint8 or uint16."""
    sample = np.bincount(image[::8, ::8].ravel())
    if sample.max() < NEARLY_ALL * sample.sum():
        return False
    counts = np.bincount(image.ravel())
    return is_one(np.arange(len(counts)), counts)

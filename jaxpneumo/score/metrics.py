"""Dice and IoU per image: integer counts first, ratios once, at the end.

Scores are the challenge's: each image has its own Dice, and the mean is taken over images. An empty
prediction on an image without pneumothorax scores 1, any prediction there scores 0. As 78 % of the images are
negative, the mean over all says little by itself, so a summary also has the means over positives and negatives.
"""

from typing import cast

import numpy as np

from jaxpneumo.process.errors import InputError


def counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts pixels per image.

    Args:
      prediction: (..., H, W) mask, bool or integer, foreground where it is not 0.
      truth: the same shape.

    Returns:
      (tp, fp, fn): true positive, false positive and false negative pixels, int64 of shape (...).

    Raises:
      ValueError: the shapes differ, have fewer than two axes, or hold probabilities instead of masks.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or prediction.ndim < 2:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape} must have one shape, (..., height, width)"
        )
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype.kind not in "bui":
            raise ValueError(f"{name} is {mask.dtype}, not a mask; apply the threshold first")
    prediction, truth = prediction != 0, truth != 0
    tp = _area(prediction & truth)
    return tp, _area(prediction) - tp, _area(truth) - tp


def dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Dice coefficient 2 tp / (2 tp + fp + fn) of each image, float64; 1 where both masks are empty."""
    tp, fp, fn = _integers(tp, fp, fn)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Intersection over union tp / (tp + fp + fn) of each image, float64; 1 where both masks are empty."""
    tp, fp, fn = _integers(tp, fp, fn)
    return _ratio(tp, tp + fp + fn)


def summarise(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict[str, float | int | None]:
    """Means over images.

    Args:
      tp, fp, fn: (N,) pixel counts of N images.

    Returns:
      dice, iou: means over all images; dice_positive, iou_positive: over the images with pneumothorax;
      dice_negative: over the others, which is the share of them left empty; n_images, n_positive.
      A mean over no images is None (JSON has no NaN).

    Raises:
      InputError: there are no images.
    """
    tp, fp, fn = _integers(tp, fp, fn)
    if tp.size == 0:
        raise InputError("there are no images to score; check the split and the data directory.")
    positive = tp + fn > 0
    dices, ious = dice(tp, fp, fn), iou(tp, fp, fn)
    return {
        "dice": _mean(dices),
        "iou": _mean(ious),
        "dice_positive": _mean(dices[positive]),
        "iou_positive": _mean(ious[positive]),
        "dice_negative": _mean(dices[~positive]),
        "n_images": int(positive.size),
        "n_positive": int(positive.sum()),
    }


def all_empty(truth_area: np.ndarray) -> dict[str, float | int | None]:
    """The summary of predicting nothing at all, which any report shows beside the model.

    Args:
      truth_area: (N,) foreground pixels of each image's truth.
    """
    nothing = np.zeros_like(truth_area)
    return summarise(nothing, nothing, truth_area)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The only place of the challenge's rule: an empty prediction for an empty truth scores 1."""
    return np.where(denominator == 0, 1.0, numerator / np.maximum(denominator, 1))


def _integers(*values: np.ndarray) -> list[np.ndarray]:
    """As int64, so that sums of narrow or unsigned counts cannot overflow."""
    return [np.asarray(value, dtype=np.int64) for value in values]


def _area(mask: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.sum(mask, axis=(-2, -1), dtype=np.int64))


def _mean(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if scores.size else None

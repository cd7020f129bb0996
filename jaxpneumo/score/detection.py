"""Pneumothorax or not, image by image: AUROC and average precision, for many sets of weights at once.

A bootstrap replicate is a weight an image (how often it was drawn), so that one sort serves all replicates.
"""

import numpy as np


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the receiver operating characteristic; ties count one half (Mann-Whitney).

    Args:
      score: (N,) higher means more likely positive.
      positive: (N,) bool.
      weights: (R, N) R sets of weights; None is one set of ones.

    Returns:
      (R,) float64, nan where a set has no positives or no negatives.
    """
    positives, negatives = _by_descending_score(score, positive, weights)
    # Negatives below each score's positives, and half of those at it.
    above = np.cumsum(negatives, axis=1)
    total_positive, total_negative = positives.sum(axis=1), negatives.sum(axis=1)
    below = total_negative[:, None] - above + negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positives * below).sum(axis=1) / (total_positive * total_negative)


def average_precision(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of the precision at each score, weighted by the recall that it adds; arguments as in `auroc`."""
    positives, negatives = _by_descending_score(score, positive, weights)
    true_positives = np.cumsum(positives, axis=1)
    called = true_positives + np.cumsum(negatives, axis=1)
    precision = true_positives / np.maximum(called, 1e-300)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (precision * positives).sum(axis=1) / true_positives[:, -1]


def _by_descending_score(
    score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the positives and of the negatives at each different score, (R, scores) each."""
    weights = np.ones((1, len(score))) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    weights, positive = weights[:, order], positive[order]
    return (
        np.add.reduceat(weights * positive, first, axis=1),
        np.add.reduceat(weights * ~positive, first, axis=1),
    )

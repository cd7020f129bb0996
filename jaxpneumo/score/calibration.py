"""Calibration of the image-level score: does a score of 0.7 mean seven in ten?

Reliability in bins, expected calibration error, one temperature fitted by likelihood, and a band of uncertain scores.
Everything that is fitted is fitted on some patients and scored on the others.
"""

from typing import Any

import numpy as np

from jaxpneumo.score.folds import folds

BINS = 10
FOLDS = 5
SHARE = 0.95  # of positives above and of negatives below the uncertain band
_CLIP = 1e-6
NO_INTERVAL = "the expected calibration error has no interval: it is biased upwards, more so in replicates"
_RULE = (
    f"{SHARE:.0%} of the positive images score at least `low`, {SHARE:.0%} of the negative ones at most `high`; "
    "an image between the two is uncertain. Where `high` is below `low` no image is, and both ends are their mean."
)


def reliability(score: np.ndarray, positive: np.ndarray) -> list[dict[str, float | int | None]]:
    """Score against frequency in BINS equal bins of [0, 1]: low, high, n_images, mean_score, positive_share."""
    number = _bin(score)
    return [
        {
            "low": b / BINS,
            "high": (b + 1) / BINS,
            "n_images": int(inside.sum()),
            "mean_score": float(score[inside].mean()) if inside.any() else None,
            "positive_share": float(positive[inside].mean()) if inside.any() else None,
        }
        for b, inside in ((b, number == b) for b in range(BINS))
    ]


def expected_calibration_error(
    score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean distance of score and frequency over BINS equal bins, weighted by their images (Guo et al. 2017).

    Args:
      score: (N,) in [0, 1].
      positive: (N,) bool.
      weights: (R, N) R sets of weights; None is one set of ones.

    Returns:
      (R,) float64.
    """
    weights = np.ones((1, len(score))) if weights is None else weights
    member = _bin(score)[:, None] == np.arange(BINS)
    gaps = np.abs(weights @ (member * (score - positive)[:, None]))
    return gaps.sum(axis=1) / weights.sum(axis=1)


def fit_temperature(score: np.ndarray, positive: np.ndarray) -> float:
    """The temperature T that makes `apply_temperature(score, T)` most likely, between 1/50 and 50."""
    from scipy.optimize import minimize_scalar  # here: slow to import

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(apply_temperature(score, np.exp(log_t)), positive),
        bounds=(-np.log(50), np.log(50)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x))


def apply_temperature(score: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(logit(score) / temperature): the order of the images stays as it is."""
    clipped = np.clip(score, _CLIP, 1 - _CLIP)
    return 1 / (1 + np.exp(-np.log(clipped / (1 - clipped)) / temperature))


def negative_log_likelihood(score: np.ndarray, positive: np.ndarray) -> float:
    """Mean over images, in nats; scores of exactly 0 and 1 count as 1e-6 from it."""
    clipped = np.clip(score, _CLIP, 1 - _CLIP)
    return float(-np.mean(np.where(positive, np.log(clipped), np.log(1 - clipped))))


def uncertain_band(score: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(low, high) by the rule that the report states; needs positive and negative images."""
    low = float(np.quantile(score[positive], 1 - SHARE, method="lower"))
    high = float(np.quantile(score[~positive], SHARE, method="higher"))
    middle = (low + high) / 2
    return (low, high) if low <= high else (middle, middle)


def calibration(score: np.ndarray, positive: np.ndarray, cluster: np.ndarray, seed: int = 0) -> dict[str, Any] | None:
    """The calibration of one image-level score, for JSON.

    Args:
      score: (N,) in [0, 1].
      positive: (N,) bool.
      cluster: (N,) numbers of the images' patients.
      seed: of the folds.

    Returns:
      reliability, expected_calibration_error, brier and negative_log_likelihood as they are; `temperature`, of
      all images, for use; `after_temperature`, the same scores where each fold had the temperature of the
      others; `uncertain`, the band of all images, and what the others' band gives on each fold. None where
      fitting on some patients and scoring on others is not possible: too few of either kind.
    """
    count = min(FOLDS, int(cluster.max(initial=-1)) + 1)
    if count < 2:
        return None
    fold = folds(cluster, positive, count, seed)
    if any(len(np.unique(positive[fold != f])) < 2 for f in range(count)):
        return None
    calibrated, uncertain, called = np.empty(len(score)), np.zeros(len(score), bool), np.zeros(len(score), bool)
    for f in range(count):
        fit, rest = fold != f, fold == f
        calibrated[rest] = apply_temperature(score[rest], fit_temperature(score[fit], positive[fit]))
        low, high = uncertain_band(score[fit], positive[fit])
        uncertain[rest] = (score[rest] > low) & (score[rest] < high)
        called[rest] = score[rest] >= high
    low, high = uncertain_band(score, positive)
    certain = ~uncertain
    return {
        "n_images": len(score),
        "folds": count,
        "reliability": reliability(score, positive),
        **_quality(score, positive),
        "temperature": fit_temperature(score, positive),
        "after_temperature": {**_quality(calibrated, positive), "reliability": reliability(calibrated, positive)},
        "uncertain": {
            "rule": _RULE,
            "low": low,
            "high": high,
            "held_out": {
                "share_uncertain": float(uncertain.mean()),
                "sensitivity_of_the_rest": _share(called[certain & positive]),
                "specificity_of_the_rest": _share(~called[certain & ~positive]),
            },
        },
    }


def _quality(score: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    return {
        "expected_calibration_error": float(expected_calibration_error(score, positive)[0]),
        "brier": float(np.mean((score - positive) ** 2)),
        "negative_log_likelihood": negative_log_likelihood(score, positive),
    }


def _share(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _bin(score: np.ndarray) -> np.ndarray:
    return np.minimum((score * BINS).astype(int), BINS - 1)

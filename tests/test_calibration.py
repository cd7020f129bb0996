"""Reliability and error by hand, temperature against scikit-learn, and that held-out means held out."""

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from jaxpneumo.score.calibration import (
    apply_temperature,
    calibration,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    uncertain_band,
)


def simulated(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are `temperature` times too sure, and what happened."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1.5, n)
    positive = rng.random(n) < 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-logit * temperature)), positive


def test_bins_by_hand():
    score = np.array([0.05, 0.05, 0.95, 1.0, 0.1])
    positive = np.array([False, True, True, True, False])
    bins = reliability(score, positive)
    assert [b["n_images"] for b in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0]["mean_score"] == pytest.approx(0.05)
    assert bins[0]["positive_share"] == 0.5
    assert bins[2]["mean_score"] is None
    expected = (2 * abs(0.05 - 0.5) + 1 * 0.1 + 2 * abs(0.975 - 1)) / 5
    assert expected_calibration_error(score, positive) == pytest.approx([expected])
    weights = np.array([[1.0, 1, 0, 0, 3], [0, 0, 1, 1, 0]])
    assert expected_calibration_error(score, positive, weights) == pytest.approx([(0.9 + 0.3) / 5, 0.025])


def test_scores_against_scikit_learn():
    score, positive = simulated(1000, 2.0)
    share, mean = calibration_curve(positive, score, n_bins=10)
    bins = [b for b in reliability(score, positive) if b["n_images"]]
    assert [b["positive_share"] for b in bins] == pytest.approx(share.tolist(), abs=1e-6)
    assert [b["mean_score"] for b in bins] == pytest.approx(mean.tolist(), abs=1e-6)
    assert negative_log_likelihood(score, positive) == pytest.approx(log_loss(positive, score), abs=1e-6)
    found = calibration(score, positive, np.arange(1000))
    assert found["brier"] == pytest.approx(brier_score_loss(positive, score), abs=1e-6)


def test_temperature_is_logistic_regression_through_the_origin():
    score, positive = simulated(3000, 2.5)
    logit = np.log(score / (1 - score))[:, None]
    slope = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10).fit(logit, positive).coef_[0, 0]
    temperature = fit_temperature(score, positive)
    assert temperature == pytest.approx(1 / slope, rel=1e-4)
    assert temperature == pytest.approx(2.5, rel=0.1)
    np.testing.assert_allclose(apply_temperature(np.array([0.0, 0.5, 1.0]), 1.0), [1e-6, 0.5, 1 - 1e-6])


def test_temperature_repairs_scores_that_are_too_sure():
    score, positive = simulated(2000, 3.0)
    found = calibration(score, positive, np.arange(2000))
    json.dumps(found, allow_nan=False)
    assert found["expected_calibration_error"] > 0.08
    assert found["after_temperature"]["expected_calibration_error"] < 0.04
    assert found["after_temperature"]["negative_log_likelihood"] < found["negative_log_likelihood"]


def test_nothing_is_learnt_from_the_patients_it_is_tried_on():
    """Where the outcome is a patient's own coin, fitting cannot help on other patients."""
    rng = np.random.default_rng(1)
    score = rng.uniform(0.4, 0.6, 40)
    positive = rng.random(40) < 0.5
    found = calibration(score, positive, np.arange(40))
    in_sample = negative_log_likelihood(apply_temperature(score, found["temperature"]), positive)
    assert found["after_temperature"]["negative_log_likelihood"] > in_sample


def test_uncertain_band_by_its_rule():
    score = np.arange(100) / 100
    positive = score >= 0.4
    positive[[20, 70]] = [True, False]
    low, high = uncertain_band(score, positive)
    assert np.mean(score[positive] >= low) >= 0.95
    assert np.mean(score[~positive] <= high) >= 0.95
    assert low <= high
    separated = uncertain_band(score, score >= 0.4)
    assert separated[0] == separated[1]  # nothing is uncertain


def test_too_few_images_are_not_calibrated():
    assert calibration(np.array([0.1, 0.9]), np.array([False, True]), np.zeros(2, int)) is None
    assert calibration(np.full(20, 0.3), np.zeros(20, bool), np.arange(20)) is None

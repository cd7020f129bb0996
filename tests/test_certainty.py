"""The certainty of a decision: bands of the score from the run's evaluation, and four reasons for doubt."""

import shutil
from dataclasses import replace

import pytest

from jaxpneumo.predict.certainty import Bands, Certainty, bands_of, judge
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.files import read_json


@pytest.mark.parametrize(
    ("score", "area", "band", "why"),
    [
        (0.8, 5000, "likely", ""),
        (0.81, 4095, "uncertain", "the outlined area is less than 2 times the removal threshold"),
        (0.8, 4096, "likely", ""),
        (0.5, 9000, "uncertain", "the score is between 0.200 and 0.800"),
        (0.5, 0, "uncertain", "the score is between 0.200 and 0.800"),
        (0.2, 9000, "uncertain", "outlined, but the score is at most 0.200"),
        (0.9, 0, "uncertain", "nothing outlined, but the score is at least 0.800"),
        (0.2, 0, "unlikely", ""),
    ],
)
def test_a_decision_that_might_as_well_be_another_is_uncertain(score, area, band, why):
    """Of an image of 1024 x 1024 pixels with a removal threshold of 2048."""
    assert judge(Bands(0.2, 0.8), score, area, 1024, 1024, 2048) == Certainty(band, why)


def test_the_removal_threshold_scales_with_the_image_and_0_is_none():
    assert judge(Bands(0.2, 0.8), 0.9, 1023, 512, 512, 2048).band == "uncertain"
    assert judge(Bands(0.2, 0.8), 0.9, 1024, 512, 512, 2048).band == "likely"
    assert judge(Bands(0.2, 0.8), 0.9, 1, 1024, 1024, 0).band == "likely"


def test_limits_come_from_the_evaluation_of_this_model_or_are_called_uncalibrated(evaluated, tmp_path):
    predictor = load_predictor(evaluated)
    run = shutil.copytree(evaluated, tmp_path / "run", ignore=shutil.ignore_patterns("stage*", "checkpoints"))
    predictor = replace(predictor, workdir=run)
    threshold = predictor.settings.threshold
    uncalibrated = Bands(threshold / 2, (1 + threshold) / 2)
    limits = read_json(run / "evaluation/calibration.json")
    write_json(run / "evaluation/calibration.json", {**limits, "top_mean": {"uncertain": {"low": 0.1, "high": 0.7}}})
    assert bands_of(predictor) == Bands(0.1, 0.7, calibrated=True)
    # Of other weights, an ensemble, or without test-time augmentation
    assert bands_of(replace(predictor, model_id="other")) == uncalibrated
    assert bands_of(replace(predictor, settings=replace(predictor.settings, tta=False))) == uncalibrated
    write_json(run / "evaluation/calibration.json", {**limits, "top_mean": None})  # too few images
    assert bands_of(predictor) == uncalibrated
    (run / "evaluation/calibration.json").unlink()
    assert bands_of(predictor) == uncalibrated

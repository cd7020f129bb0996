"""The certainty of a decision: bands of the score from the run's evaluation, and four reasons for doubt."""

import shutil
from dataclasses import replace

import pytest

from jaxpneumo.predict.certainty import Bands, Certainty, bands_of, judge
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import InputError
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


@pytest.fixture
def predictor(evaluated, tmp_path):
    """Of a run that was never evaluated, with settings that a test may replace."""
    run = shutil.copytree(evaluated, tmp_path / "run", ignore=shutil.ignore_patterns("stage*", "evaluation"))
    return replace(load_predictor(evaluated), workdir=run)


def test_with_a_top_threshold_the_limits_are_halfway_from_it(predictor):
    """No pixel below 0.8 alone makes an outline, so a score of 0.5 speaks against one."""
    settings = replace(predictor.settings, threshold=0.2, top_threshold=0.8, top_area=500)
    assert bands_of(replace(predictor, settings=settings)) == Bands(0.4, 0.9)
    # An area of 0 asks for no pixel at the top.
    assert bands_of(replace(predictor, settings=replace(settings, top_area=0))) == Bands(0.1, 0.6)


def with_classifier(run, folder):
    """A copy of the run's config that says it has a classifier."""
    config = read_json(run / "config.json")
    write_json(folder / "config.json", {**config, "model": {**config["model"], "classifier": True}})
    return folder


def test_an_ensembles_score_is_a_classifiers_where_any_run_with_a_weight_has_one(predictor, tmp_path):
    (tmp_path / "other").mkdir()
    other = with_classifier(predictor.workdir, tmp_path / "other")

    def bands(*weights):
        ensemble = replace(predictor, weighted_runs=tuple(zip((predictor.workdir, other), weights, strict=True)))
        return bands_of(replace(ensemble, settings=replace(predictor.settings, threshold=0.2)))

    assert bands(0.7, 0.3) == Bands(0.25, 0.75)
    assert bands(1.0, 0.0) == Bands(0.1, 0.6)


def test_a_classifiers_threshold_needs_a_classifier(predictor, tmp_path):
    """Of a member of an ensemble, say, that has the ensemble's saved thresholds; of the gate, too."""
    wrong = replace(predictor, settings=replace(predictor.settings, classifier_threshold=0.3))
    for one in (wrong, replace(predictor, gate=wrong)):
        with pytest.raises(InputError, match=r"says less than 0\.3, and .*run has no classifier"):
            bands_of(one)
    other = with_classifier(predictor.workdir, tmp_path)
    both = replace(wrong, weighted_runs=((predictor.workdir, 0.5), (other, 0.5)))
    assert bands_of(both) == Bands(0.15, 0.65)

"""How certain the decision about a radiograph is, by a rule of few words.

The image-level score lies in one of three bands. Their limits come from the run's evaluation where that can be used:
95 % of its positive images score at least `low`, and 95 % of its negative ones at most `high`. Without it the limits
are halfway from a threshold to 0 and to 1: the classifier's, or the probability that some pixel must reach for anything
to be outlined. These are not calibrated, and results say so.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.predict.trained_on import images_in_training
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import read_config

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor

LIKELY, UNCERTAIN, UNLIKELY = "likely", "uncertain", "unlikely"
TOP_MEAN, CLASSIFIER = "top_mean", "classifier"  # the names of image-level scores in evaluations
SCORE_WORDS = {TOP_MEAN: "the mean of an image's greatest probabilities", CLASSIFIER: "the classifier's probability"}
NEAR = 2.0  # an outlined area below so many times the removal threshold might as well have been removed


@dataclass(frozen=True)
class Bands:
    """The limits of the score's bands: likely from `high` on, unlikely up to `low`, uncertain between them.

    Attributes:
      low, high: image-level scores.
      calibrated: whether they come from the evaluation of this very model and view.
    """

    low: float
    high: float
    calibrated: bool = False


@dataclass(frozen=True)
class Certainty:
    """How certain a decision is.

    Attributes:
      band: whether the image shows a pneumothorax: LIKELY, UNCERTAIN or UNLIKELY.
      why: for UNCERTAIN the reason in words; else "".
    """

    band: str
    why: str = ""


def has_classifier(predictor: "Predictor") -> bool:
    """Whether the image-level score is a classifier's: an ensemble's, where any run with a weight has one."""
    runs = [workdir for workdir, weight in predictor.weighted_runs if weight > 0]
    if not runs:
        return predictor.config.model.classifier
    return any(read_config(workdir).model.classifier for workdir in runs)


def score_name(classifies: bool) -> str:
    """The image-level score that predictions have, by its name in evaluations: the classifier's where there is one."""
    return CLASSIFIER if classifies else TOP_MEAN


def check_classifier(predictor: "Predictor") -> None:
    """Raises InputError for a classifier's threshold without a classifier, of a predictor or its gate."""
    for one in (predictor, cast("Predictor | None", predictor.gate)):
        if one is not None and one.settings.classifier_threshold is not None and not has_classifier(one):
            raise InputError(
                "the thresholds leave images empty for which a classifier says less than "
                f"{one.settings.classifier_threshold:g}, and {one.workdir} has no classifier: they were chosen for "
                "another model. Choose some for this one with `jaxpneumo thresholds`."
            )


def bands_of(predictor: "Predictor") -> Bands:
    """The bands for the scores of a predictor.

    They are calibrated if its run was evaluated with these weights and this TTA, on images that it was not trained on.

    Raises:
      InputError: as `check_classifier`.
    """
    settings, classifies = predictor.settings, has_classifier(predictor)
    check_classifier(predictor)
    if predictor.bands is not None:
        return predictor.bands
    try:
        summary = read_json(predictor.workdir / "evaluation/summary.json")
        calibration = read_json(predictor.workdir / "evaluation/calibration.json")
        same = (summary["run"]["model"], summary["input_size"], summary["tta"]) == (
            predictor.model_id,
            settings.size,
            settings.tta,
        )
        limits = calibration[score_name(classifies)]["uncertain"]
        # Of the images that it was trained on, a network is surer than of any others.
        if same and images_in_training(summary) == 0:
            return Bands(float(limits["low"]), float(limits["high"]), calibrated=True)
    except (InputError, KeyError, TypeError, ValueError):
        pass  # never evaluated, by an older version, or with too few images to calibrate
    own = settings.classifier_threshold
    # With a top threshold, nothing below it is outlined.
    pixel = settings.top_threshold if settings.top_threshold is not None and settings.top_area else settings.threshold
    middle = pixel if not classifies else 0.5 if own is None else own
    return Bands(middle / 2, (1 + middle) / 2)


def judge(bands: Bands, score: float, area: int, height: int, width: int, removal_threshold: int) -> Certainty:
    """The certainty of one image.

    Args:
      bands: the limits of the score's bands.
      score: image-level score.
      area: outlined pixels, after removal.
      height, width: native size of the image.
      removal_threshold: area in pixels of a 1024x1024 image below which predictions were removed.

    Returns:
      UNCERTAIN for a score between the limits, for a decision that contradicts the score, and for an outlined area of
      less than NEAR times the removal threshold; else the score's band.
    """
    smallest = removal_threshold * height * width / NATIVE_AREA
    band = LIKELY if score >= bands.high else UNLIKELY if score <= bands.low else UNCERTAIN
    if band == UNCERTAIN:
        return Certainty(UNCERTAIN, f"the score is between {bands.low:.3f} and {bands.high:.3f}")
    if area and band == UNLIKELY:
        return Certainty(UNCERTAIN, f"outlined, but the score is at most {bands.low:.3f}")
    if not area and band == LIKELY:
        return Certainty(UNCERTAIN, f"nothing outlined, but the score is at least {bands.high:.3f}")
    if 0 < area < NEAR * smallest:
        return Certainty(UNCERTAIN, f"the outlined area is less than {NEAR:g} times the removal threshold")
    return Certainty(band)

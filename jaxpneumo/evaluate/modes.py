"""The modes in which an evaluation scores a run, and their names."""

from collections.abc import Mapping
from typing import Any

from jaxpneumo.predict.certainty import CLASSIFIER, TOP_MEAN, score_name
from jaxpneumo.run.config import Predict

# name -> (TTA, removal of small predictions); the rows of the papers' tables. A run's removal rule is its removal
# threshold, and its top threshold and area if it has any.
MODES = {"plain": (0, False), "tta": (1, False), "removal": (0, True), "tta_removal": (1, True)}
TITLES = {"plain": "plain", "tta": "TTA", "removal": "removal", "tta_removal": "TTA + removal"}
GATED = "_gated"  # follows the own mode's name where a gate or the classifier decides which images show anything
VIEWS = ("plain", "tta")
IMAGE_SCORES = ("maximum", TOP_MEAN)  # and CLASSIFIER, of networks that have one


def own_mode(settings: Predict) -> str:
    """The mode that matches a run's own prediction settings."""
    removes = settings.removal_threshold > 0 or settings.top_threshold is not None
    return next(mode for mode, (tta, removal) in MODES.items() if (bool(tta), removal) == (bool(settings.tta), removes))


def image_score(summary: Mapping[str, Any]) -> tuple[str, str]:
    """The view and the name of the image-level score that predictions with an evaluation's settings have."""
    view = VIEWS[summary["run"]["mode"].startswith("tta")]
    return view, score_name(CLASSIFIER in summary["image_level"][view])


def title(mode: str, triplet: bool = False) -> str:
    """A mode's name for a person: "TTA + removal", of a triplet "TTA + rule", with a gate "TTA + removal + gate"."""
    name = TITLES[mode.removesuffix(GATED)]
    return (name.replace("removal", "rule") if triplet else name) + (" + gate" if mode.endswith(GATED) else "")

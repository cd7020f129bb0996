"""The modes in which an evaluation scores a run, and their names."""

from jaxpneumo.run.config import Predict

# name -> (flip TTA, removal of small predictions); the rows of the papers' tables. A run's removal rule is its removal
# threshold, and its top threshold and area if it has any.
MODES = {"plain": (0, False), "tta": (1, False), "removal": (0, True), "tta_removal": (1, True)}
VIEWS = ("plain", "tta")
IMAGE_SCORES = ("maximum", "top_mean")


def own_mode(settings: Predict) -> str:
    """The mode that matches a run's own prediction settings."""
    removes = settings.removal_threshold > 0 or settings.top_threshold is not None
    return next(mode for mode, (tta, removal) in MODES.items() if (bool(tta), removal) == (settings.tta, removes))

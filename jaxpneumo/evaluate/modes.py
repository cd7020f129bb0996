"""The modes in which an evaluation scores a run, and their names."""

from jaxpneumo.run.config import Predict

# name -> (flip TTA, removal threshold); the rows of the papers' tables
MODES = {"plain": (0, False), "tta": (1, False), "removal": (0, True), "tta_removal": (1, True)}
VIEWS = ("plain", "tta")
IMAGE_SCORES = ("maximum", "top_mean")


def own_mode(settings: Predict) -> str:
    """The mode that matches a run's own prediction settings."""
    return next(
        mode
        for mode, (tta, removal) in MODES.items()
        if (bool(tta), removal) == (settings.tta, settings.removal_threshold > 0)
    )

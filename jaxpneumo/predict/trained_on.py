"""How many images of an evaluation its run was trained on: what it scores on these says little about others."""

from collections.abc import Mapping
from typing import Any

from jaxpneumo.data.splits import SEEN

UNKNOWN = "It is not known which of these images it was trained on: on new images the scores may be worse."


def images_in_training(summary: Mapping[str, Any]) -> int | None:
    """Reads from a summary.json how many of its images the run was trained on.

    Those count too that a run was trained on whose weights it started from, and images of such images' patients.

    Returns:
      0 for images that it did not see in training; None where that is not known, as of an imported run.
    """
    split = summary["split"]
    if split.get("part") == "train":  # older evaluations do not count them
        return summary["n_images"]
    return split.get("images_in_training", None if split.get("part") == "whole" else split.get(SEEN, 0))


def in_words(summary: Mapping[str, Any]) -> str:
    """Warns in a sentence about the scores of training images; "" where there are none."""
    trained = images_in_training(summary)
    if trained is None:
        return UNKNOWN
    if not trained:
        return ""
    by = " by the run that this one started from" if SEEN in summary["split"] else ""
    return f"{trained} of these images were used for training{by}: the scores are better than on new images."

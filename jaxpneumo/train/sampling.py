"""The order of a stage that draws positive images more often: an exact share of them in every epoch."""

from collections.abc import Sequence

import numpy as np

from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Stage


def shares(stage: Stage) -> list[float] | None:
    """The share of positive images in each epoch of a stage, along a line; None where all images are drawn alike."""
    first = stage.positive_share
    if first is None:
        return None
    last = first if stage.final_positive_share is None else stage.final_positive_share
    return np.linspace(first, last, stage.epochs).tolist()


def sampled_order(positive: np.ndarray, shares: Sequence[float], images: int, seed: int) -> np.ndarray:
    """The places of all images that a stage draws, epoch by epoch.

    Positive and negative images are shuffled apart, again and again, across the borders of epochs: of each kind no
    image is drawn twice more often than another. An epoch's images are then mixed.

    Args:
      positive: bool (n,), which training images have a finding.
      shares: of positive images, one for each epoch.
      images: number of images in an epoch.
      seed: decides the order.

    Returns:
      int32 (epochs * images,), places in `positive`.

    Raises:
      InputError: the shares need positive or negative images and there are none.
    """
    rng = np.random.default_rng((seed, len(shares), images))
    wanted = [round(share * images) for share in shares]
    found = _shuffles(np.flatnonzero(positive), sum(wanted), rng, "with pneumothorax")
    empty = _shuffles(np.flatnonzero(~positive), len(shares) * images - sum(wanted), rng, "without pneumothorax")
    epochs, taken = [], 0
    for epoch, count in enumerate(wanted):
        before = epoch * images - taken
        epoch_images = [found[taken : taken + count], empty[before : before + images - count]]
        epochs.append(rng.permutation(np.concatenate(epoch_images)))
        taken += count
    return np.concatenate(epochs).astype(np.int32)


def _shuffles(places: np.ndarray, count: int, rng: np.random.Generator, kind: str) -> np.ndarray:
    """`count` places from one shuffle after the other."""
    if count and not len(places):
        raise InputError(
            f"no training image {kind} can be drawn. Leave positive_share and final_positive_share out of the stage, "
            "or choose another split."
        )
    passes = -(-count // max(len(places), 1))
    return np.concatenate([places[:0], *(rng.permutation(places) for _ in range(passes))])[:count]

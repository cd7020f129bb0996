"""A baseline that does not look at the image: it predicts the mean shape of the training masks everywhere."""

import numpy as np

MOST = 500  # training masks that the shape is made from
CUTS = np.arange(1, 20) / 20  # shares of the mean map's maximum


def mean_shape(masks: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, dict[str, float | int]] | None:
    """The mean mask of positive training images, cut where it scores best on them.

    Args:
      masks: uint8 (N, S, S / 8), bits along the rows, of the prepared data set.
      rows: training images with a mask; of more than MOST, evenly spaced ones are used.

    Returns:
      float32 (S, S), 1 inside of the shape and 0 outside, and {"images", "cut", "training_dice_positive"}; the
      cut is in shares of the images. None without rows.
    """
    if not len(rows):
        return None
    chosen = np.unique(rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)])
    packed = np.stack([masks[row] for row in chosen])
    total = np.asarray(sum(np.unpackbits(mask, axis=-1).astype(np.float32) for mask in packed))
    mean = total / len(chosen)
    cuts = CUTS * mean.max()
    reached = np.searchsorted(cuts, mean.astype(float), side="right")  # how many cuts each pixel reaches

    def at_least(values: np.ndarray) -> np.ndarray:
        return np.cumsum(np.bincount(values, minlength=len(cuts) + 1)[::-1])[::-1][1:]

    area = at_least(reached.ravel())
    dices = []
    for mask in packed:
        true = reached[np.unpackbits(mask, axis=-1) != 0]
        dices.append(2 * at_least(true) / np.maximum(area + len(true), 1))
    score = np.mean(dices, axis=0)
    best = int(np.argmax(score))
    shape = (reached > best).astype(np.float32)
    return shape, {"images": len(chosen), "cut": float(cuts[best]), "training_dice_positive": float(score[best])}

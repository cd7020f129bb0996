"""The mean shape by hand, and that its cut is the best on the masks it is made from."""

import numpy as np
import pytest

from jaxpneumo.score.baseline import CUTS, mean_shape
from jaxpneumo.score.metrics import counts, dice


def test_mean_shape_by_hand():
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[:3, 2:4, 2:6] = 1
    masks[0, 7, 7] = 1
    masks[3] = 1  # not asked for
    shape, made_from = mean_shape(np.packbits(masks, axis=-1), np.arange(3))
    np.testing.assert_array_equal(shape, masks[1])
    assert made_from["images"] == 3
    assert made_from["training_dice_positive"] == pytest.approx((1 + 1 + 16 / 17) / 3)
    assert mean_shape(np.packbits(masks, axis=-1), np.zeros(0, int)) is None


def test_cut_is_the_best_one():
    rng = np.random.default_rng(0)
    centre = rng.integers(8, 24, (20, 2))
    places = np.indices((32, 32)).transpose(1, 2, 0)
    masks = np.stack([np.abs(places - c).sum(-1) < 7 for c in centre])
    shape, made_from = mean_shape(np.packbits(masks, axis=-1), np.arange(20))
    mean = masks.mean(axis=0)
    scores = [np.mean([dice(*counts(mean >= cut * mean.max(), m)) for m in masks]) for cut in CUTS]
    assert made_from["training_dice_positive"] == pytest.approx(max(scores), abs=1e-6)
    assert np.mean([dice(*counts(shape.astype(bool), m)) for m in masks]) == pytest.approx(max(scores), abs=1e-6)

"""Regions found and regions real, by hand and against SciPy's labelling."""

import numpy as np
from scipy import ndimage

from jaxpneumo.score.lesions import lesion_counts

NOTHING = np.zeros((6, 8), np.uint8)
TRUTH = np.array(
    [
        [1, 1, 0, 0, 0, 0, 0, 1],
        [0, 0, 1, 0, 0, 0, 0, 1],  # touches the first region at a corner: one region
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
    np.uint8,
)


def test_regions_by_hand():
    prediction = NOTHING.copy()
    prediction[1, 2] = 1  # meets the first region
    prediction[3:5, 5:7] = 1  # meets the third
    prediction[5, 0] = 1  # meets none
    assert lesion_counts(prediction, TRUTH) == (3, 2, 3, 2)
    # One prediction over all of them finds all, and is one region.
    assert lesion_counts(np.ones_like(TRUTH), TRUTH) == (3, 3, 1, 1)


def test_empty_masks_one_by_one():
    assert lesion_counts(NOTHING, NOTHING) == (0, 0, 0, 0)
    assert lesion_counts(NOTHING, TRUTH) == (3, 0, 0, 0)
    assert lesion_counts(TRUTH, NOTHING) == (0, 0, 3, 0)


def test_regions_are_scipys():
    rng = np.random.default_rng(1)
    for _ in range(20):
        prediction, truth = (rng.random((2, 30, 40)) < 0.15).astype(np.uint8)
        expected = []
        for mask, other in ((truth, prediction), (prediction, truth)):
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            expected += [count, sum(other[regions == n].any() for n in range(1, count + 1))]
        assert lesion_counts(prediction, truth) == tuple(expected)

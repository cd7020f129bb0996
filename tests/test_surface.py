"""Distances of outlines against hand-made cases, SciPy's distance transform and all pairs of points."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure
from scipy.spatial.distance import cdist

from jaxpneumo.score.surface import outline, surface_distances


def square(top: int, left: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_outline_by_hand():
    assert outline(square(0, 0, 1)).tolist() == [[0, 0]]
    assert len(outline(square(5, 5, 4))) == 12  # its 4 inner pixels are not on it
    assert len(outline(np.ones((6, 9), np.uint8))) == 26  # beyond the image is outside
    assert len(outline(np.zeros((6, 9), np.uint8))) == 0


def test_distances_by_hand():
    assert surface_distances(square(3, 3, 9), square(3, 3, 9)) == (0, 0)
    assert surface_distances(square(2, 3, 1), square(5, 7, 1)) == (5, 5)
    assert surface_distances(square(2, 3, 1), square(2, 7, 1), (1.0, 0.5)) == (2, 2)
    # From one pixel to two, 3 and 4 away: distances 3 one way, 3 and 4 back.
    one, two = square(10, 10, 1), square(10, 13, 1) | square(10, 14, 1)
    hausdorff, mean = surface_distances(one, two)
    assert hausdorff == pytest.approx(np.percentile([3, 3, 4], 95))
    assert mean == pytest.approx((3 + 3.5) / 2)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 1)])
def test_there_is_no_distance_to_nothing(a, b):
    masks = np.zeros((8, 8), np.uint8), square(2, 2, 3, 8)
    assert np.isnan(surface_distances(masks[a], masks[b])).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.139, 0.139), (0.2, 0.7)])
def test_distances_are_those_of_the_distance_transform_and_of_all_pairs(spacing):
    rng = np.random.default_rng(0)
    cross = generate_binary_structure(2, 1)
    for _ in range(20):
        blobs = rng.random((2, 37, 53)) < rng.choice([0.02, 0.5, 0.9])
        outlines = [blob ^ binary_erosion(blob, cross) for blob in blobs]
        there = distance_transform_edt(~outlines[1], sampling=spacing)[outlines[0]]
        back = distance_transform_edt(~outlines[0], sampling=spacing)[outlines[1]]
        hausdorff, mean = surface_distances(*blobs.astype(np.uint8), spacing)
        assert hausdorff == pytest.approx(np.percentile(np.hstack([there, back]), 95), abs=1e-6)
        assert mean == pytest.approx((there.mean() + back.mean()) / 2, abs=1e-6)
        pairs = cdist(*(np.argwhere(line) * spacing for line in outlines))
        assert mean == pytest.approx((pairs.min(1).mean() + pairs.min(0).mean()) / 2, abs=1e-6)

"""The removal threshold: both rules, their edges, and its scaling with the image."""

import cv2
import numpy as np
import pytest

from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.process.errors import InputError


def mask_with(*rectangles: tuple[int, int, int, int], size: int = 1024, dtype=np.uint8) -> np.ndarray:
    """Rectangles given as top, left, height, width."""
    mask = np.zeros((size, size), dtype)
    for top, left, height, width in rectangles:
        mask[top : top + height, left : left + width] = 1
    return mask


@pytest.mark.parametrize("rule", ["image", "component"])
@pytest.mark.parametrize(("area", "stays"), [(2047, False), (2048, True), (2049, True)])
def test_threshold_is_the_smallest_area_kept(rule, area, stays):
    mask = mask_with((100, 20, 2, 1000), (102, 20, 1, area - 2000))
    result = remove_small(mask, 2048, rule)
    np.testing.assert_array_equal(result, mask if stays else np.zeros_like(mask))


def test_rules_differ_on_several_components():
    large, small = (0, 0, 50, 50), (500, 500, 40, 40)  # 2,500 and 1,600 pixels
    mask = mask_with(large, small)
    np.testing.assert_array_equal(remove_small(mask, 2048, "image"), mask)
    np.testing.assert_array_equal(remove_small(mask, 2048, "component"), mask_with(large))


def test_image_rule_counts_all_components_together():
    mask = mask_with((0, 0, 40, 40), (500, 500, 40, 40))
    np.testing.assert_array_equal(remove_small(mask, 2048, "image"), mask)
    assert not remove_small(mask, 2048, "component").any()


def test_components_touch_across_corners():
    mask = mask_with((0, 0, 40, 40), (40, 40, 40, 40))  # 8-connected: one component of 3,200 pixels
    np.testing.assert_array_equal(remove_small(mask, 2048, "component"), mask)


@pytest.mark.parametrize("rule", ["image", "component"])
@pytest.mark.parametrize(("size", "smallest"), [(512, 512), (256, 128), (2048, 8192)])
def test_threshold_scales_with_the_area_of_the_image(rule, size, smallest):
    for area, stays in ((smallest - 1, False), (smallest, True)):
        mask = np.zeros((size, size), np.uint8)
        mask.reshape(-1)[:area] = 1  # rows from the top: one component
        assert remove_small(mask, 2048, rule).sum() == (area if stays else 0)


def test_oblong_images_scale_by_their_area():
    mask = np.zeros((512, 1024), np.uint8)
    mask[0, :] = 1  # 1,024 pixels, the threshold of half an image
    assert remove_small(mask, 2048).sum() == 1024
    mask[0, 0] = 0
    assert remove_small(mask, 2048).sum() == 0


@pytest.mark.parametrize("rule", ["image", "component"])
def test_zero_removes_nothing_and_empty_stays_empty(rule):
    pixel = mask_with((1023, 1023, 1, 1))
    np.testing.assert_array_equal(remove_small(pixel, 0, rule), pixel)
    assert not remove_small(np.zeros((64, 32), bool), 2048, rule).any()


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_type_is_kept_and_the_input_is_left_alone(dtype):
    mask = mask_with((0, 0, 50, 50), (500, 500, 40, 40), dtype=dtype)
    before = mask.copy()
    for rule in ("image", "component"):
        for threshold in (0, 2048, 5000):
            assert remove_small(mask, threshold, rule).dtype == dtype
    np.testing.assert_array_equal(mask, before)


def test_component_rule_agrees_with_flood_filling():
    rng = np.random.default_rng(0)
    blobs = cv2.GaussianBlur(rng.normal(size=(128, 128)), (0, 0), 2) > 0.1
    mask, threshold = blobs.astype(np.uint8), 64 * 128  # 128 pixels in an image of 128x128
    expected, left = np.zeros_like(mask), mask.copy()
    while left.any():
        row, column = np.argwhere(left)[0]
        filled = left.copy()
        cv2.floodFill(filled, None, (int(column), int(row)), 2, flags=8)
        component = filled == 2
        left[component] = 0
        if component.sum() >= 128:
            expected[component] = 1
    assert 0 < expected.sum() < mask.sum()
    np.testing.assert_array_equal(remove_small(mask, threshold, "component"), expected)


def test_wrong_use_is_refused_in_words():
    mask = np.zeros((8, 8), np.uint8)
    with pytest.raises(InputError, match="image, component"):
        remove_small(mask, 2048, "componnet")
    with pytest.raises(InputError, match="negative"):
        remove_small(mask, -1)
    with pytest.raises(InputError, match=r"\(2, 8, 8\)"):
        remove_small(np.zeros((2, 8, 8), np.uint8), 2048)

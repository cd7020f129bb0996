"""Native masks on the device: OpenCV's resize, the same on every canvas, emptied where too little is left."""

import cv2
import jax
import numpy as np
import pytest

from jaxpneumo.predict.native import (
    BUCKET,
    canvas,
    native_grid,
    native_masks,
    pixels_at_least,
    to_native,
    to_native_on_host,
)
from jaxpneumo.predict.native import NativeMask as Mask
from jaxpneumo.predict.postprocess import remove_small

SIZES = [(128, 128), (101, 77), (64, 200), (300, 311), (512, 257), (32, 32), (17, 480)]
compiled = jax.jit(native_masks)


def blobs(count: int, size: int = 64) -> np.ndarray:
    noise = np.random.default_rng(1).random((count, size, size), np.float32)
    return np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in noise])


def masks(probability, sizes, smallest=0, thresholds=(0.5,), shape=None):
    grid = native_grid(sizes, probability.shape[-1], len(probability), shape)
    smallest = np.full((len(probability), len(thresholds)), smallest, np.int32)
    bits, areas = compiled(probability, grid, smallest, np.float32(thresholds))
    return [Mask(b, *size, int(area)) for b, size, area in zip(np.asarray(bits), sizes, areas, strict=False)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mask_is_opencvs_bilinear_resize_and_threshold(height, width):
    probability = blobs(1)
    (mask,) = masks(probability, [(height, width)])
    native = cv2.resize(probability[0], (width, height), interpolation=cv2.INTER_LINEAR)
    found = np.asarray(to_native(probability, native_grid([(height, width)], 64, 1)))[0]
    np.testing.assert_allclose(found[:height, :width], native, atol=1e-5)
    on_host = to_native_on_host(probability[0], height, width)
    assert on_host.dtype == np.float32
    np.testing.assert_allclose(on_host, found[:height, :width], atol=1e-6)
    assert (found[height:] == -1).all()
    assert (found[:, width:] == -1).all()
    certain = np.abs(native - 0.5) > 1e-4
    assert mask.unpack().shape == (height, width)
    assert 0 < mask.unpack().mean() < 1
    assert mask.area == mask.unpack().sum()
    np.testing.assert_array_equal(mask.unpack()[certain], (native >= 0.5)[certain])


@pytest.mark.long
def test_the_canvas_does_not_matter_to_a_single_bit():
    """Many sizes on one canvas, on a larger one, and each on its own of exactly its size, in whole bytes."""
    probability = blobs(len(SIZES))
    together = masks(probability, SIZES)
    larger = masks(probability, SIZES, shape=(768, 1024))
    for i, (height, width) in enumerate(SIZES):
        (alone,) = masks(probability[i : i + 1], SIZES[i : i + 1], shape=(height, -(-width // 8) * 8))
        for other in (together[i], larger[i]):
            np.testing.assert_array_equal(other.unpack(), alone.unpack())
            assert other.area == alone.area > 0
        exact = np.asarray(to_native(probability[i : i + 1], native_grid(SIZES[i : i + 1], 64, 1, (height, width))))
        wide = np.asarray(to_native(probability, native_grid(SIZES, 64, len(SIZES))))[i, :height, :width]
        np.testing.assert_array_equal(wide, exact[0])


def test_a_canvas_holds_all_and_is_one_of_few():
    assert canvas([(1, 1)]) == (BUCKET, BUCKET)
    assert canvas([(1024, 1000), (800, 1030)]) == (1024, 1280)
    assert len({canvas([(h, w)]) for h in range(2000, 3000, 7) for w in range(2000, 2500, 7)}) <= 5 * 4


def test_masks_are_emptied_by_count_as_on_the_host():
    """The removal threshold of `remove_small` just below, at and above each mask's area; empty places stay empty."""
    probability = blobs(3)
    sizes = [(128, 128), (101, 77)]
    plain = masks(probability, sizes)
    for i, mask in enumerate(plain):
        for area in (mask.area - 1, mask.area, mask.area + 1):
            threshold = area * 1024 * 1024 / (mask.height * mask.width)
            kept = masks(probability, sizes, pixels_at_least(threshold, *sizes[i]))[i]
            np.testing.assert_array_equal(kept.unpack(), remove_small(mask.unpack(), threshold))
            assert kept.area == kept.unpack().sum()
    bits, areas = compiled(probability, native_grid(sizes, 64, 3), np.zeros((3, 1), np.int32), np.float32([0.0]))
    assert areas.tolist() == [128 * 128, 101 * 77, 0]
    assert not np.any(bits[2])


def test_a_mask_needs_enough_at_the_upper_threshold_too():
    probability = blobs(1)
    native = cv2.resize(probability[0], (100, 90), interpolation=cv2.INTER_LINEAR)
    top = float(np.sort(native.ravel())[-200] - 1e-5)  # about 200 pixels reach it
    (kept,) = masks(probability, [(90, 100)], np.array([0, 150]), (0.5, top))
    (gone,) = masks(probability, [(90, 100)], np.array([0, 250]), (0.5, top))
    assert kept.area == masks(probability, [(90, 100)])[0].area > 200
    assert gone.area == gone.unpack().sum() == 0

"""Images of the arrays' sizes: byte for byte what OpenCV gives, halves included."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom import dicom


def by_opencv(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def check(image: np.ndarray, sizes: tuple[int, ...]) -> None:
    for size, made in zip(sizes, resize_to_squares(image, sizes), strict=True):
        np.testing.assert_array_equal(made, by_opencv(image, size), str(size))
        assert made.dtype == np.uint8
        assert made.flags.c_contiguous


@pytest.mark.parametrize("values", [range(256), [0, 255], [0, 1], [254, 255], [100, 101, 102], [7, 8, 248]])
def test_random_images(values):
    rng = np.random.default_rng(len(values))
    for _ in range(30):
        check(rng.choice(np.array(values, np.uint8), (256, 256)), (64, 128))


def test_every_sum_of_sixteen_pixels():
    """All 4,081 sums, ties at every sixteenth, spread over the pixels in 16 ways; each is rounded as OpenCV does."""
    rng = np.random.default_rng(0)
    blocks = np.zeros((16, 64 * 64, 16), np.uint8)
    for number, total in enumerate(np.minimum(np.arange(64 * 64), 4080)):
        blocks[:, number] = np.clip(total - 255 * np.arange(16), 0, 255) if number % 2 else total // 16
        blocks[:, number, : total % 16 if number % 2 == 0 else 0] += 1
    blocks[1:] = rng.permuted(blocks[1:], axis=-1)
    assert set(np.unique(blocks.sum(axis=-1, dtype=np.int64))) == set(range(4081))
    for block in blocks:
        check(block.reshape(64, 64, 4, 4).swapaxes(1, 2).reshape(256, 256), (64,))


@given(st.integers(1, 300), st.integers(1, 300), st.permutations([32, 64, 96]))
def test_any_shape(height, width, sizes):
    check(np.random.default_rng(height).integers(0, 256, (height, width), np.uint8), tuple(sizes))


def test_the_order_in_memory_does_not_matter():
    image = np.random.default_rng(1).integers(0, 256, (128, 256), np.uint8)
    check(image[:, ::2], (32, 64))
    check(image[:, :128].T, (64, 32))


def test_the_sample(shared):
    for path in sorted((shared / "data/siim-sample").rglob("*.dcm"))[::12]:
        check(dicom.read(path).image, (256, 512))

"""The perceptual hash: the same radiograph is found again, another one is not."""

import cv2
import numpy as np
import pytest

from jaxpneumo.data import leaks
from jaxpneumo.dicom import dicom
from jaxpneumo.synthetic import radiographs


@pytest.fixture(scope="module")
def images():
    return [radiographs.radiograph(seed, 256)[0] for seed in range(12)]


def recompressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)


def cropped(image):
    return cv2.resize(image[3:-3, 3:-3], image.shape[::-1], interpolation=cv2.INTER_AREA)


def other_window(image):
    return np.clip(image * 1.2 - 20, 0, 255).astype(np.uint8)


def distance(one, other):
    return int(np.bitwise_count(leaks.perceptual_hash(one) ^ leaks.perceptual_hash(other)).sum())


@pytest.mark.parametrize("change", [recompressed, cropped, other_window])
def test_changed_copies_are_found(images, change):
    pairs = leaks.near_duplicates([*images, change(images[4])])
    assert (4, 12) in set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_distances_are_those_of_the_hashes(images):
    pairs = leaks.near_duplicates(images, threshold=255)
    assert len(pairs) == 12 * 11 // 2
    assert (pairs.first < pairs.second).all()
    for first, second, bits in zip(pairs.first, pairs.second, pairs.distance, strict=True):
        assert distance(images[first], images[second]) == bits


def test_blocks_make_no_difference(images, monkeypatch):
    many = images * 2
    whole = leaks.near_duplicates(many)
    assert {(row, row + 12) for row in range(12)} <= set(zip(whole.first.tolist(), whole.second.tolist(), strict=True))
    monkeypatch.setattr(leaks, "BLOCK", 5)
    parts = leaks.near_duplicates(many)
    for name in ("first", "second", "distance"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_flat_images_are_alike():
    """And their hash is not made of rounding errors."""
    flat = [np.full((96, 96), value, np.uint8) for value in (0, 77, 255)]
    assert len(leaks.near_duplicates(flat, threshold=0)) == 3


def test_no_images():
    assert len(leaks.near_duplicates([])) == 0


def test_nearest_training_image_of_each_validation_image():
    pairs = leaks.Pairs(np.array([0, 0, 1, 2, 3]), np.array([4, 5, 4, 3, 5]), np.array([9, 2, 7, 0, 1]))
    train, validation = np.array([0, 1, 2, 3]), np.array([4, 5])
    across = leaks.across(pairs, train, validation)
    assert across.first.tolist() == [4, 5]
    assert across.second.tolist() == [1, 3]
    assert across.distance.tolist() == [7, 1]
    assert len(leaks.across(pairs, np.array([0]), np.array([1, 2]))) == 0


def test_real_radiographs_are_told_apart(shared):
    """What the threshold rests on: of other patients none is near, of the same image a copy is."""
    files = sorted((shared / "data/siim-sample/dicom-images-train").rglob("*.dcm"))
    images = [cv2.resize(dicom.read(path).image, (256, 256), interpolation=cv2.INTER_AREA) for path in files]
    assert len(leaks.near_duplicates(images)) == 0
    copies = [other_window(cropped(recompressed(image))) for image in images]
    pairs = leaks.near_duplicates(images + copies)
    assert {(row, row + len(images)) for row in range(len(images))} <= set(
        zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    )
    assert (pairs.second - pairs.first == len(images)).all()

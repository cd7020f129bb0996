"""Augmentation: what each group does to image and mask, and that threads and seeds decide nothing else."""

import itertools
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from jaxpneumo.augment import groups, host
from jaxpneumo.process.errors import InputError

SIZE = 64
OFF = {"flip": 0, "intensity": 0, "distortion": 0, "crop": 0}
DEFAULTS = {"flip": 0.5, "intensity": 0.3, "distortion": 0.3, "crop": 0.25}


def engine(size=SIZE, **probabilities):
    return host.make_augment(**{**OFF, **probabilities}, size=size)


def record(seed=0, size=SIZE):
    """A smooth random image, and its bright half as the mask."""
    noise = np.random.default_rng(seed).random((size, size), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), size / 12)
    image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return image, (image > 127).astype(np.uint8)


def ramp(size=SIZE):
    """Grey values that rise by 3 a column, with an empty mask."""
    return np.tile(np.arange(size, dtype=np.uint8) * 3, (size, 1)), np.zeros((size, size), np.uint8)


def generator(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", None])
@pytest.mark.parametrize("name", OFF)
def test_probabilities_outside_0_to_1_are_refused(name, value):
    with pytest.raises(InputError, match=rf"augment\.{name}.*from 0 .* to 1"):
        engine(**{name: value})


def test_another_version_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"AlbumentationsX.*pip install albumentations==2\.0\.8"):
        host.check_version("2.0.9")
    host.check_version("2.0.8")


def test_no_network_request_for_updates_was_made():
    assert sys.modules["albumentations.check_version"].opener is None


def test_nothing_happens_when_all_groups_are_off():
    image, mask = record()
    for seed in range(20):
        augmented = engine()(image, mask, generator(seed))
        np.testing.assert_array_equal(augmented, (image, mask))


def test_flip_mirrors_image_and_mask():
    image, mask = record()
    flipped_image, flipped_mask = engine(flip=1)(image, mask, generator(0))
    np.testing.assert_array_equal(flipped_image, image[:, ::-1])
    np.testing.assert_array_equal(flipped_mask, mask[:, ::-1])


def test_intensity_maps_grey_values_and_leaves_the_mask():
    image, mask = record()
    kinds = set()
    for seed in range(30):
        changed, same_mask = engine(intensity=1)(image, mask, generator(seed))
        np.testing.assert_array_equal(same_mask, mask)
        low, middle, high = (int(changed[image == value][0]) for value in (0, 128, 255))
        assert all(len(np.unique(changed[image == value])) == 1 for value in np.unique(image))
        assert abs(middle - 128) <= 0.2 * 255 + 1
        ends_stay = low == 0 and high == 255
        # Gamma keeps both ends, contrast the lower one, brightness neither (one of them by clipping alone).
        kinds.add("gamma" if ends_stay and middle != 128 else "contrast" if low == 0 and high < 255 else "other")
    assert {"gamma", "contrast", "other"} == kinds


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["elastic", "grid", "optical"])
def test_distortions_move_image_and_mask_alike(kind, size):
    image, mask = record(size=size)
    pipeline = host.albumentations.Compose([host._distortions(size)[kind]], seed=3)
    moved = pipeline(image=image, mask=mask)
    assert set(np.unique(moved["mask"])) == {0, 1}
    assert np.mean(moved["mask"] != mask) > 0.005
    # The mask is the bright half of the image before and after; only its edge may differ by the
    # interpolation.
    assert np.mean((moved["image"] > 127) != moved["mask"]) < 0.02


def test_distortions_mirror_at_the_border_instead_of_filling_with_black():
    image, mask = np.full((SIZE, SIZE), 200, np.uint8), np.ones((SIZE, SIZE), np.uint8)
    for seed in range(60):
        moved_image, moved_mask = engine(distortion=1)(image, mask, generator(seed))
        assert moved_image.min() == 200
        assert moved_mask.min() == 1


@pytest.mark.parametrize("size", [64, 128, 512])
def test_elastic_displacement_is_the_same_fraction_of_the_image_at_every_size(size):
    def spread(size):
        alpha, sigma = groups.elastic_field(size)
        noise = generator(0).uniform(-1, 1, (size, size)).astype(np.float32)
        return float(cv2.GaussianBlur(noise, (0, 0), sigma).std()) * alpha / size

    assert groups.elastic_field(256) == (120, 6)
    assert spread(size) == pytest.approx(spread(256), rel=0.15)


def test_elastic_displaces_as_far_as_in_the_kernels():
    """Noise in -1..1 has deviation 1 / sqrt(3), of which the Gaussian leaves 1 / (2 sqrt(pi) sigma)."""
    expected = 120 / np.sqrt(3) / (2 * np.sqrt(np.pi) * 6)
    elastic = host._distortions(256)[0]
    inside = slice(32, -32)  # at the border the noise is mirrored, and displaces further
    y, x = np.mgrid[:256, :256][:, inside, inside].reshape(2, -1).astype(float)
    plane = np.stack([x, y, np.ones_like(x)], axis=1)
    variances = []
    for seed in range(4):
        elastic.set_random_state(generator(seed), None)
        maps = elastic.get_params_dependent_on_data({"shape": (256, 256)}, {})
        for name in ("map_x", "map_y"):  # what the affine part does not explain is the displacement
            _, squares, _, _ = np.linalg.lstsq(plane, maps[name][inside, inside].ravel().astype(float), rcond=None)
            variances.append(squares[0] / len(plane))
    assert np.sqrt(np.mean(variances)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_elastic_affine_part_takes_the_corners_where_they_were_moved(size):
    """Without the displacement field the transform is exactly warpAffine of the kernels' three-corner map."""
    image, mask = record(size=size)
    transform = host.AffineElasticTransform(0, 6, border_mode=cv2.BORDER_REFLECT_101, p=1)
    transform.set_random_state(generator(5), None)
    replay = generator(5)
    replay.uniform(-1, 1, (2, size, size))  # the displacement field, drawn first and multiplied by 0
    corners, limit = groups.elastic_affine(size)
    assert limit == pytest.approx(3.6 * size / 256)
    moved = corners + replay.uniform(-limit, limit, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    expected = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    result = transform(image=image, mask=mask)
    assert np.abs(result["image"].astype(int) - expected).max() <= 2
    assert np.any(result["image"] != image)


def test_elastic_displacement_at_the_border_is_that_of_mirrored_noise():
    """Mirrored noise averages half as many values there: the deviation is sqrt(2) of the interior's."""
    noise = generator(0).uniform(-1, 1, (60, 2, 64, 64)).astype(np.float32)
    corners, _ = groups.elastic_affine(64)
    y, x = np.mgrid[:64, :64]
    fields = np.concatenate([host.elastic_maps(planes, corners, 10, 2) - np.stack([x, y]) for planes in noise])
    deviation = fields.std(0)
    inside = deviation[10:-10, 10:-10].mean()
    for border in (deviation[0], deviation[-1], deviation[:, 0], deviation[:, -1]):
        assert border[10:-10].mean() == pytest.approx(np.sqrt(2) * inside, rel=0.1)


def test_crop_keeps_the_mask_in_its_place_on_the_image():
    """A disc and its mask: both centres of gravity are at the same place, to a tenth of a pixel, after the crop."""
    y, x = np.mgrid[:256, :256]
    mask = (np.hypot(y - 130, x - 120) < 50).astype(np.uint8)
    augment = engine(size=256, crop=1)
    shifts = []
    for seed in range(20):
        cropped, cropped_mask = augment(255 * mask, mask, generator(seed))
        shifts.append([np.mean(np.nonzero(cropped > 127), 1) - np.mean(np.nonzero(cropped_mask), 1)])
    assert np.abs(np.mean(shifts, 0)).max() < 0.1


def test_crop_magnifies_at_most_at_most_256_to_176():
    image, mask = ramp()
    assert (groups.crop_heights(256), groups.crop_heights(512)) == ((176, 256), (352, 512))
    spans = []
    for seed in range(60):
        cropped, _ = engine(crop=1)(image, mask, generator(seed))
        assert np.all(np.diff(cropped[0].astype(int)) >= 0)
        spans.append((int(cropped[0, -1]) - int(cropped[0, 0])) / 3 + 1)
    assert min(spans) >= 44
    assert min(spans) <= 47
    assert max(spans) >= 62


def test_groups_come_in_order_independently_and_as_often_as_configured():
    """A flip turns the ramp round and a crop narrows it: both can be read off the first row."""
    image, mask = ramp()
    augment = engine(flip=0.5, crop=0.25)
    flips, crops = [], []
    for seed in range(800):
        row = augment(image, mask, generator(seed))[0][0].astype(int)
        flips.append(row[-1] < row[0])
        crops.append(abs(row[-1] - row[0]) < 3 * (SIZE - 1))
    flips, crops = np.array(flips), np.array(crops)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.05)
    assert np.mean(crops) == pytest.approx(0.25 * 20 / 21, abs=0.05)  # one height of 21 is the whole image
    assert np.mean(crops[~flips]) == pytest.approx(np.mean(crops[flips]), abs=0.08)
    names = [type(transform).__name__ for transform in host._pipeline(groups.Groups(**DEFAULTS), SIZE)]
    assert names == ["HorizontalFlip", "OneOf", "OneOf", "RandomSizedCrop"]


def test_the_form_of_the_input_is_kept_and_the_input_untouched():
    augment = engine(**dict.fromkeys(OFF, 1))
    image, mask = record()
    before = image.copy(), mask.copy()
    for seed in range(20):
        for result in augment(image, mask, generator(seed)):
            assert result.shape == (SIZE, SIZE)
            assert result.dtype == np.uint8
            assert result.flags.c_contiguous
    np.testing.assert_array_equal((image, mask), before)


def test_the_generator_alone_decides_and_a_pickled_engine_agrees():
    image, mask = record()
    augment = engine(**dict.fromkeys(OFF, 1))
    copy = pickle.loads(pickle.dumps(augment))
    first = augment(image, mask, generator(1))
    augment(image, mask, generator(2))
    np.testing.assert_array_equal(augment(image, mask, generator(1)), first)
    np.testing.assert_array_equal(copy(image, mask, generator(1)), first)
    assert np.any(augment(image, mask, generator(2))[0] != first[0])


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="64x64"):
        engine()(*record(size=32), generator(0))


def test_sixteen_threads_give_the_serial_results_bit_for_bit():
    records = [record(seed) for seed in range(200)]
    augment = engine(**dict.fromkeys(OFF, 1))

    def augmented(i):
        return augment(*records[i], generator(i))

    serial = [augmented(i) for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        threaded = list(pool.map(augmented, range(200)))
    assert sum(np.any(one[0] != other[0]) for one, other in itertools.pairwise(serial)) == 199
    np.testing.assert_array_equal(threaded, serial)

"""Device augmentation: the same pictures as albumentations for the same parameters, and the same distributions."""

import functools
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.stats
from albumentations.augmentations.geometric import functional

from jaxpneumo.augment import device, groups, host
from jaxpneumo.augment.groups import Groups
from jaxpneumo.process.errors import InputError
from jaxpneumo.synthetic import radiographs

CASES = 200
OFF = {"flip": 0.0, "intensity": 0.0, "distortion": 0.0, "crop": 0.0}
ALL = dict.fromkeys(OFF, 1.0)
DEFAULTS = {"flip": 0.5, "intensity": 0.3, "distortion": 0.3, "crop": 0.25}
KINDS = {"none": 0, "elastic": 1, "grid": 2, "optical": 3}


# Thousands of pictures: compiled in full.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
apply = jax.jit(jax.vmap(device.apply), compiler_options=OPTIMISED)


@pytest.fixture(scope="module")
def pictures():
    """Ten synthetic radiographs with pneumothoraces of the challenge's sizes, uint8 (10, 256, 256), and their masks."""
    drawn = [radiographs.radiograph(seed, 256, positive=True) for seed in range(10)]
    return tuple(np.stack(planes) for planes in zip(*drawn, strict=True))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def draws(size=256, **probabilities):
    """Parameters of 2,000 examples, as NumPy arrays."""
    draw = partial(device.draw, groups=Groups(**{**OFF, **probabilities}), size=size)
    return jax.tree.map(np.array, jax.jit(jax.vmap(draw))(keys(2000)))


def example(parameters, i):
    return jax.tree.map(lambda leaf: leaf[i], parameters)


def in_batches(parameters, images, masks):
    """The device engine's pictures of all cases; case i is of picture i modulo the pictures."""
    results = []
    for start in range(0, len(parameters.flip), 20):
        rows = np.arange(start, start + 20)
        results.append(apply(example(parameters, rows), images[rows % len(images)], masks[rows % len(images)]))
    return tuple(np.concatenate(planes) for planes in zip(*results, strict=True))


# --- the same parameters in albumentations


def host_flip(parameters, image, mask):
    return (image[:, ::-1], mask[:, ::-1]) if parameters.flip else (image, mask)


def host_intensity(parameters, image, mask):
    contrast, gamma, brightness = (float(value) for value in parameters.intensity)
    if gamma != 1:
        return host._intensities()[1].apply(image, gamma), mask
    return host._intensities()[0].apply(image, contrast, 255 * brightness), mask


def host_distortion(parameters, image, mask):
    size, drawn = len(image), parameters.distortion
    if drawn.kind == KINDS["none"]:
        return image, mask
    if drawn.kind == KINDS["elastic"]:
        # The noise that consists of the drawn cosines alone.
        corners, _ = groups.elastic_affine(size)
        kept = drawn.elastic_noise.shape[-1]
        whole = np.pad(drawn.elastic_noise, ((0, 0), (0, size - kept), (0, size - kept)))
        noise = scipy.fft.idctn(whole, axes=(1, 2), norm="ortho").astype(np.float32)
        maps = host.elastic_maps(noise, corners + drawn.elastic_corners, *groups.elastic_field(size))
    elif drawn.kind == KINDS["grid"]:
        maps = functional.generate_grid((size, size), *drawn.grid_widths.tolist(), groups.GRID_CELLS)
    else:
        maps = functional.get_camera_matrix_distortion_maps((size, size), float(drawn.optical))
    transform = host._distortions(size)[drawn.kind - 1]
    return transform.apply(image, *maps), transform.apply_to_mask(mask, *maps)


def host_crop(parameters, image, mask):
    height, left, top = (int(value) for value in parameters.crop)
    coordinates = (left, top, left + height, top + height)
    transform = host._pipeline(Groups(0, 0, 0, 1), len(image)).transforms[0]
    return transform.apply(image, coordinates), transform.apply_to_mask(mask, coordinates)


def chain(parameters, image, mask):
    for transform in (host_flip, host_intensity, host_distortion, host_crop):
        image, mask = transform(parameters, image, mask)
    return image, mask


def compare(parameters, images, masks):
    """Mean absolute differences (cases,) in grey levels and mask IoUs (cases,) of the two engines."""
    grey, binary = in_batches(parameters, images, masks)
    differences, ious = [], []
    for i in range(len(grey)):
        image, mask = chain(example(parameters, i), images[i % len(images)], masks[i % len(images)])
        differences.append(np.abs(grey[i] - image).mean())
        union = np.sum((mask > 0) | (binary[i] > 0))
        ious.append(np.sum((mask > 0) & (binary[i] > 0)) / union if union else 1.0)
    assert set(np.unique(binary)) <= {0.0, 1.0}
    return np.array(differences), np.array(ious)


TRANSFORMS = ("flip", "contrast", "gamma", "brightness", "elastic", "grid", "optical", "crop")


def cases(transform):
    """200 drawn cases of one transform alone."""
    neutral, drawn = draws(), draws(**ALL)
    group = {"flip": "flip", "crop": "crop"}.get(transform, "distortion" if transform in KINDS else "intensity")
    chosen = np.ones(2000, bool)
    if group == "distortion":
        chosen = drawn.distortion.kind == KINDS[transform]
    elif group == "intensity":
        chosen = getattr(drawn.intensity, transform) != getattr(neutral.intensity, transform)
    return example(neutral._replace(**{group: getattr(drawn, group)}), np.nonzero(chosen)[0][:CASES])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_transform_gives_albumentations_picture(transform, pictures):
    differences, ious = compare(cases(transform), *pictures)
    assert len(differences) == CASES
    assert differences.max() < 1
    assert ious.min() > 0.99
    if transform != "flip":  # not because nothing happened
        plain = in_batches(cases(transform), *pictures)[0] - np.tile(pictures[0], (CASES // 10, 1, 1))
        assert np.abs(plain).mean() > 1


@pytest.mark.long
def test_the_whole_chain_gives_albumentations_picture(pictures):
    """All four groups at once. Albumentations reads the image twice then, which takes more of its noise."""
    differences, ious = compare(example(draws(**ALL), slice(0, CASES)), *pictures)
    assert differences.mean() < 1
    assert differences.max() < 2
    assert ious.min() > 0.99
    differences, ious = compare(example(draws(**DEFAULTS), slice(0, CASES)), *pictures)
    assert differences.mean() < 0.5
    assert ious.min() > 0.99


def test_elastic_field_of_the_hosts_noise_is_the_hosts(pictures):
    """51 of 256 cosines of uniform noise a direction give the field that smoothing all of it gives."""
    size, elastic = 256, example(cases("elastic"), 0)
    corners, _ = groups.elastic_affine(size)
    noise = np.random.default_rng(0).uniform(-1, 1, (2, size, size)).astype(np.float32)
    kept = elastic.distortion.elastic_noise.shape[-1]
    assert kept == 51
    cosines = scipy.fft.dctn(noise, axes=(1, 2), norm="ortho")[:, :kept, :kept]
    elastic = elastic._replace(
        distortion=elastic.distortion._replace(elastic_noise=cosines, elastic_corners=np.zeros((3, 2), np.float32))
    )
    row = jnp.arange(size, dtype=jnp.float32)
    field = device._distort(elastic.distortion, False, row, row, size)
    np.testing.assert_allclose(field, host.elastic_maps(noise, corners, 120, 6), atol=0.02)


# --- the same distributions as albumentations


def host_draws(transform, name, count=400, size=256):
    """A parameter of an albumentations transform for many seeds."""
    values, image = [], np.zeros((size, size), np.uint8)
    for seed in range(count):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        values.append(transform.get_params_dependent_on_data({"shape": image.shape}, {"image": image})[name])
    return np.array(values)


def assert_same_distribution(ours, theirs):
    ours, theirs = np.ravel(ours).astype(float), np.ravel(theirs).astype(float)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=4 * np.std(theirs) / np.sqrt(len(theirs)))
    assert scipy.stats.ks_2samp(ours, theirs).pvalue > 0.001


def test_intensities_are_distributed_as_albumentations():
    drawn = draws(**ALL).intensity
    contrast, gamma, brightness = host._intensities()
    assert_same_distribution(drawn.contrast[drawn.contrast != 1], host_draws(contrast, "alpha"))
    assert_same_distribution(drawn.gamma[drawn.gamma != 1], host_draws(gamma, "gamma"))
    assert_same_distribution(255 * drawn.brightness[drawn.brightness != 0], host_draws(brightness, "beta"))


def test_distortions_are_distributed_as_albumentations():
    drawn = draws(**ALL).distortion
    _, grid, optical = host._distortions(256)
    for axis, name, first in ((0, "map_x", (0, slice(0, None, 51))), (1, "map_y", (slice(0, None, 51), 0))):
        borders = np.stack([maps[first] for maps in host_draws(grid, name)])
        assert_same_distribution(drawn.grid_widths[:, axis, :5], np.diff(borders, axis=1) / 51)
    # The first pixel of the map gives k back.
    x = -255 / 2 / 256
    stretch = (host_draws(optical, "map_x")[:, 0, 0] - 128) / (256 * x)
    assert_same_distribution(drawn.optical, (stretch - 1) / (2 * x**2 + (2 * x**2) ** 2))
    _, limit = groups.elastic_affine(256)
    assert_same_distribution(drawn.elastic_corners, np.random.default_rng(0).uniform(-limit, limit, 5000))


def test_elastic_fields_deviate_and_correlate_as_albumentations():
    """Deviation inside, at each border and in the corners, and the correlation along a row, over 60 fields."""
    size, grid = 64, np.arange(64)
    drawn = example(draws(size, **ALL), slice(0, 60)).distortion
    drawn = drawn._replace(elastic_corners=0 * drawn.elastic_corners, kind=np.full(60, KINDS["elastic"]))
    row = jnp.arange(size, dtype=jnp.float32)
    ours = np.asarray(jax.jit(jax.vmap(lambda one: device._distort(one, False, row, row, size)))(drawn))
    corners, _ = groups.elastic_affine(size)
    noise = np.random.default_rng(1).uniform(-1, 1, (60, 2, size, size)).astype(np.float32)
    theirs = np.stack([host.elastic_maps(planes, corners, *groups.elastic_field(size)) for planes in noise])
    fields = [maps.reshape(60, 2, size, size) - np.stack(np.meshgrid(grid, grid)) for maps in (ours, theirs)]
    for rows in (slice(8, 56), 0, -1):
        for columns in (slice(8, 56), 0, -1):
            ours, theirs = (field[:, :, rows, columns].std() for field in fields)
            assert ours == pytest.approx(theirs, rel=0.2 if isinstance(rows, int) and isinstance(columns, int) else 0.1)
    for lag in (1, 2, 4):
        ours, theirs = (np.mean(f[..., 8:40] * f[..., 8 + lag : 40 + lag]) / np.mean(f**2) for f in fields)
        assert ours == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("size", [64, 256])
def test_crops_are_distributed_as_albumentations(size):
    drawn = draws(size, **ALL).crop
    crop = host._pipeline(Groups(0, 0, 0, 1), size).transforms[0]
    left, top, right, _ = host_draws(crop, "crop_coords", 1000, size).T
    assert (drawn.height.min(), drawn.height.max()) == groups.crop_heights(size)
    assert np.all((drawn.left >= 0) & (drawn.top >= 0))
    assert np.all(np.maximum(drawn.left, drawn.top) + drawn.height <= size)
    assert_same_distribution(drawn.height, right - left)
    assert_same_distribution(drawn.left, left)
    assert_same_distribution(drawn.top, top)


def actions(drawn, size):
    """(examples, 4) bool: which groups acted."""
    intensity = np.stack(drawn.intensity, 1) != np.array([1, 1, 0], np.float32)
    crop = drawn.crop.height < size
    return np.stack([drawn.flip, intensity.any(1), drawn.distortion.kind != KINDS["none"], crop], 1)


def test_groups_act_as_often_as_configured_and_independently():
    drawn = draws(**DEFAULTS)
    acted = actions(drawn, 256)
    chances = np.array(list(DEFAULTS.values())) * [1, 1, 1, 80 / 81]  # one height of 81 is the whole image
    np.testing.assert_allclose(acted.mean(0), chances, atol=4 * 0.5 / np.sqrt(2000))
    together = acted.T.astype(float) @ acted / 2000
    np.testing.assert_allclose(
        together[~np.eye(4, dtype=bool)], np.outer(chances, chances)[~np.eye(4, dtype=bool)], atol=0.035
    )
    for kind in ("elastic", "grid", "optical"):
        assert np.mean(drawn.distortion.kind == KINDS[kind]) == pytest.approx(0.1, abs=0.025)
    for value, neutral in zip(drawn.intensity, (1, 1, 0), strict=True):
        assert np.mean(value != np.float32(neutral)) == pytest.approx(0.1, abs=0.025)


def test_probability_0_never_acts_and_1_always():
    assert not actions(draws(), 256).any()
    acted = actions(draws(**ALL), 256)
    assert acted[:, :3].all()
    assert acted[:, 3].mean() > 0.97  # the largest crop is the whole image


# --- the engine as a whole


def batch(size=64, count=6):
    drawn = [radiographs.radiograph(seed, size, positive=True, area_scale=3) for seed in range(count)]
    return tuple(np.stack(planes) for planes in zip(*drawn, strict=True))


@functools.cache
def engine(size=64, **probabilities):
    return jax.jit(device.make_augment(**{**OFF, **probabilities}, size=size))


def test_nothing_happens_when_all_groups_are_off():
    image, mask = batch()
    augmented = engine()(keys(6), image, mask)
    assert [plane.dtype for plane in augmented] == [np.float32, np.float32]
    np.testing.assert_array_equal(augmented[0], image)
    np.testing.assert_array_equal(augmented[1], mask)


def test_the_key_alone_decides_wherever_the_example_stands():
    image, mask = batch()
    augment = engine(**ALL)
    whole = augment(keys(6), image, mask)
    np.testing.assert_array_equal(augment(keys(6), image, mask), whole)
    turned = augment(keys(6)[::-1], image[::-1], mask[::-1])
    np.testing.assert_array_equal(np.stack(turned)[:, ::-1], whole)
    pair = augment(keys(6)[2:4], image[2:4], mask[2:4])
    np.testing.assert_allclose(pair[0], whole[0][2:4], atol=0.01)
    np.testing.assert_array_equal(pair[1], whole[1][2:4])
    same_picture = augment(keys(6), image[[0] * 6], mask[[0] * 6])[0]
    assert all(np.any(same_picture[i] != same_picture[j]) for i in range(6) for j in range(i))


def test_two_devices_give_the_result_of_one():
    image, mask = batch()
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    augment = jax.jit(device.make_augment(**ALL, size=64), in_shardings=split, out_shardings=split)
    on_two, on_one = augment(keys(6), image, mask), engine(**ALL)(keys(6), image, mask)
    assert len(on_two[0].sharding.device_set) == 2
    np.testing.assert_allclose(on_two[0], on_one[0], atol=0.01)
    np.testing.assert_array_equal(on_two[1], on_one[1])
    # Each device reads its own pictures: nothing is sent from one to another.
    assert "all-gather" not in augment.lower(keys(6), image, mask).compile().as_text()


def test_values_stay_grey_values_and_masks_binary():
    image, mask = batch()
    for seed in range(5):
        grey, binary = engine(**ALL)(keys(6, seed), image, mask)
        assert grey.min() >= 0
        assert grey.max() <= 255
        assert set(np.unique(binary)) <= {0.0, 1.0}


def test_wrong_probabilities_and_sizes_are_refused():
    with pytest.raises(InputError, match=r"augment\.flip.*from 0 .* to 1"):
        device.make_augment(**{**OFF, "flip": 1.5}, size=64)
    with pytest.raises(ValueError, match="64x64"):
        engine()(keys(2), *batch(32, 2))

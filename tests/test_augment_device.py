"""Device augmentation: the same pictures as albumentations for the same parameters, and the same distributions."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.fft
import scipy.stats
from albumentations.augmentations.geometric import functional

from jaxpneumo.augment import device, groups, host
from jaxpneumo.augment.groups import Groups
from jaxpneumo.data import synthetic

CASES = 200
OFF = {"flip": 0.0, "intensity": 0.0, "distortion": 0.0, "crop": 0.0}
ALL = dict.fromkeys(OFF, 1.0)
DEFAULTS = {"flip": 0.5, "intensity": 0.3, "distortion": 0.3, "crop": 0.25}
KINDS = {"none": 0, "elastic": 1, "grid": 2, "optical": 3}


@pytest.fixture(scope="module")
def pictures():
    """By size: ten synthetic radiographs with pneumothorax, uint8 (10, S, S), and their masks."""

    def stack(size):
        drawn = [synthetic.radiograph(seed, size, positive=True, area_scale=3) for seed in range(10)]
        return tuple(np.stack(planes) for planes in zip(*drawn, strict=True))

    return {256: stack(256), 64: stack(64)}


def draws(size, count=CASES, seed=0, **probabilities):
    """Parameters of `count` examples, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(seed), count)
    drawn = jax.jit(jax.vmap(partial(device.draw, groups=Groups(**{**OFF, **probabilities}), size=size)))(keys)
    return jax.tree.map(np.array, drawn)


def example(parameters, i):
    return jax.tree.map(lambda leaf: leaf[i], parameters)


def forced(parameters, kind):
    """All distortions of one kind."""
    of_kind = np.full_like(parameters.distortion.kind, KINDS[kind])
    return parameters._replace(distortion=parameters.distortion._replace(kind=of_kind))


def in_batches(parameters, images, masks):
    """The device engine's pictures of all cases; case i is of picture i modulo the pictures."""
    apply, results = jax.jit(device.apply), []
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


def host_distortion(parameters, image, mask, noise=None):
    size, drawn = len(image), parameters.distortion
    if drawn.kind == KINDS["none"]:
        return image, mask
    if drawn.kind == KINDS["elastic"]:
        # The noise of the drawn cosines: what smoothing takes from the others is less than a thousandth.
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


def neutral(size, **groups_on):
    return draws(size, **{**OFF, **groups_on})

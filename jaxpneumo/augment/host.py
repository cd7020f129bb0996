"""The host engine of augmentation: groups A1..A4 by albumentations, in the CPU threads that read the data.

How albumentations 2.0.8 is brought to do what the 2019 releases did for the kernels that `groups` describes:

- RandomContrast and RandomBrightness are gone: RandomBrightnessContrast with the other limit 0.
- ElasticTransform smooths normalised Gaussian noise, which displaces 2.5 times less, repeats the noise of the
  border pixel beyond the border, which displaces 2.5 times more there and 6 times more in a corner, and has
  lost its affine part: `AffineElasticTransform` draws the displacement anew.
- GridDistortion keeps the far border in place by default: `normalized=False` lets it move, as it did.
- OpticalDistortion has lost `shift_limit`, which never had an effect at the kernels' 0.5 (see `groups`).
- RandomSizedCrop enlarges masks by OpenCV's INTER_NEAREST, which moves them by half a pixel against the image:
  the exact nearest pixel is asked for.
- The border is constant by default: reflect 101 is asked for.
"""

import random
import threading
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from jaxpneumo.augment import groups as description
from jaxpneumo.augment.groups import Groups
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.runtime import environment

# Otherwise albumentations asks the network for a newer version when it is imported.
with environment(NO_ALBUMENTATIONS_UPDATE="1"):
    import albumentations

VERSION = "2.0.8"

# An albumentations pipeline keeps the parameters of the call in progress in its attributes, so that two
# threads that share one mix up each other's records. Each thread builds its own.
_this_thread = threading.local()

HostAugment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def check_version(version: str) -> None:
    """Raises InputError when `version` of albumentations is not the one that this module relies on."""
    if version != VERSION:
        raise InputError(
            f"albumentations {version} is installed, but jaxpneumo needs {VERSION}, the last MIT-licensed "
            "release (AlbumentationsX installs the same import name under the AGPL). Put it right with: "
            f"pip uninstall -y albumentationsx albumentations && pip install albumentations=={VERSION}"
        )


check_version(albumentations.__version__)


class AffineElasticTransform(albumentations.ElasticTransform):
    """ElasticTransform of the 2019 releases: uniform noise, mirrored at the border, and the affine part.

    Displacement and affine part are one resampling.
    """

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Maps (H, W) float32 from output to input pixels: first the displacement, then the affine part."""
        size = params["shape"][0]
        noise = self.random_generator.uniform(-1, 1, (2, size, size)).astype(np.float32)
        corners, limit = description.elastic_affine(size)
        moved = corners + self.random_generator.uniform(-limit, limit, corners.shape).astype(np.float32)
        return dict(zip(("map_x", "map_y"), elastic_maps(noise, moved, self.alpha, self.sigma), strict=True))


def elastic_maps(noise: np.ndarray, moved: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The elastic distortion's x and y, (2, S, S) float32, of the input pixel that each output pixel shows.

    Args:
      noise: (2, S, S) float32 in -1..1, for x and for y.
      moved: (3, 2) float32 x, y; where the corners of `groups.elastic_affine` have moved to.
      alpha, sigma: factor on the smoothed noise, and the Gaussian's standard deviation in pixels.
    """
    size = noise.shape[-1]
    corners, _ = description.elastic_affine(size)
    smooth = [cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) for plane in noise]
    row = np.arange(size, dtype=np.float32)
    x, y = row + np.float32(alpha) * smooth[0], row[:, None] + np.float32(alpha) * smooth[1]
    (a, b, c), (d, e, f) = cv2.getAffineTransform(moved, corners).astype(np.float32)
    return np.stack([a * x + b * y + c, d * x + e * y + f])


def make_augment(flip: float, intensity: float, distortion: float, crop: float, size: int) -> HostAugment:
    """The augmentation of one record, to be called from any number of threads or worker processes.

    Args:
      flip, intensity, distortion, crop: probabilities of the groups A1..A4; 0 leaves a group out.
      size: height and width of the images in pixels.

    Returns:
      A picklable `augment(image, mask, rng) -> (image, mask)`: image (size, size) uint8, mask (size, size)
      uint8 0/1, both returned in the same form and contiguous (the arguments themselves when nothing was
      drawn, never changed in place). The result depends on the arguments and on the state of `rng`, which it
      advances, alone.

    Raises:
      InputError: a probability is not a number from 0 to 1.
    """
    return partial(_augment, Groups(flip, intensity, distortion, crop), size)


def _augment(groups: Groups, size: int, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator):
    if image.shape != (size, size) or mask.shape != (size, size):
        raise ValueError(f"augmentation for {size}x{size} was given image {image.shape} and mask {mask.shape}")
    pipeline = _own_pipeline(groups, size)
    # Not set_random_seed: that seeds every transform alike, and then one draw decides all groups together (a
    # crop would never come without a flip).
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    record = pipeline(image=image, mask=mask)
    return np.ascontiguousarray(record["image"]), np.ascontiguousarray(record["mask"])


def _own_pipeline(groups: Groups, size: int) -> albumentations.Compose:
    """This thread's pipeline, built at its first record."""
    pipelines = _this_thread.__dict__.setdefault("pipelines", {})
    if (groups, size) not in pipelines:
        pipelines[groups, size] = _pipeline(groups, size)
    return pipelines[groups, size]


def _pipeline(groups: Groups, size: int) -> albumentations.Compose:
    """The groups of positive probability, in the order A1..A4."""
    chain = [
        albumentations.HorizontalFlip(p=groups.flip),
        albumentations.OneOf(_intensities(), p=groups.intensity),
        albumentations.OneOf(_distortions(size), p=groups.distortion),
        albumentations.RandomSizedCrop(
            description.crop_heights(size),
            size=(size, size),
            mask_interpolation=cv2.INTER_NEAREST_EXACT,
            p=groups.crop,
        ),
    ]
    # strict: an argument that this release does not know is an error, not a warning.
    return albumentations.Compose([transform for transform in chain if transform.p > 0], strict=True)


def _intensities() -> list[albumentations.BasicTransform | albumentations.BaseCompose]:
    low, high = description.GAMMA_RANGE
    contrast, brightness = description.CONTRAST_LIMIT, description.BRIGHTNESS_LIMIT
    return [
        albumentations.RandomBrightnessContrast(brightness_limit=0, contrast_limit=contrast, p=1),
        albumentations.RandomGamma(gamma_limit=(100 * low, 100 * high), p=1),
        albumentations.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=0, p=1),
    ]


def _distortions(size: int) -> list[albumentations.BasicTransform | albumentations.BaseCompose]:
    alpha, sigma = description.elastic_field(size)
    border = cv2.BORDER_REFLECT_101
    return [
        AffineElasticTransform(alpha, sigma, border_mode=border, p=1),
        albumentations.GridDistortion(
            description.GRID_CELLS, description.GRID_LIMIT, normalized=False, border_mode=border, p=1
        ),
        albumentations.OpticalDistortion(description.OPTICAL_LIMIT, mode="camera", border_mode=border, p=1),
    ]

"""What augmentation does: the four groups A1..A4 of arXiv 2009.02805, described once for every engine.

A record passes the groups in this order, each with its own probability and independently of the others:

- A1 `flip`: horizontal flip.
- A2 `intensity`: one of contrast, gamma, brightness (a third each), on the image alone.
- A3 `distortion`: one of elastic, grid, optical distortion (a third each).
- A4 `crop`: random square crop, brought back to full size.

A distortion moves image and mask alike: the image is read bilinearly, the mask at the nearest pixel; beyond
the border both are mirrored without repeating the edge pixel ("reflect 101").

The paper names the groups but neither their probabilities nor their strengths. The numbers below are those of
the challenge's public Keras kernels, which use this very chain: flip 0.5, A2 0.3, A3 0.3, A4 0.25. Where a
kernel leaves a parameter to albumentations, it is the default of the 2019 releases (0.3.x) that the kernels
ran on.
"""

from dataclasses import dataclass, fields

import numpy as np

from jaxpneumo.process.errors import InputError

# The kernels' pixel figures are for images of this height and width; at another size they scale with it, so
# that the same anatomy is deformed in the same way in both training stages.
REFERENCE_SIZE = 256

# A2. Each value is drawn uniformly. Defaults of RandomContrast, RandomGamma and RandomBrightness.
CONTRAST_LIMIT = 0.2  # image * (1 + u), u in -0.2..0.2, clipped to 0..255
GAMMA_RANGE = (0.8, 1.2)  # 255 * (image / 255) ** gamma
BRIGHTNESS_LIMIT = 0.2  # image + 255 * u, u in -0.2..0.2, clipped to 0..255

# A3, elastic: ElasticTransform(alpha=120, sigma=120 * 0.05, alpha_affine=120 * 0.03) of the kernels.
ELASTIC_ALPHA = 120.0  # factor on the smoothed noise
ELASTIC_SIGMA = 6.0  # px at REFERENCE_SIZE; of the Gaussian that smooths uniform noise in -1..1
ELASTIC_AFFINE = 3.6  # px at REFERENCE_SIZE; each of three corners moves by up to this much in x and in y

# A3, grid: defaults of GridDistortion. The widths of neighbouring cells vary independently and add up, so
# that the far border moves as well.
GRID_CELLS = 5
GRID_LIMIT = 0.3  # a cell is 1 + u as wide as before, u in -0.3..0.3, drawn for each column and each row

# A3, optical: OpticalDistortion(distort_limit=2, shift_limit=0.5) of the kernels. Radial lens model
# r -> r (1 + k r^2 + k r^4), r in image widths from the centre, the same at every size. shift_limit is not
# here: the 2019 releases rounded the shift to whole pixels, so that a limit of 0.5 px is always 0.
OPTICAL_LIMIT = 2.0  # k in -2..2

# A4: RandomSizedCrop(min_max_height=(176, 256)) of the kernels; whole heights, uniform, ends included.
CROP_MINIMUM = 176 / 256  # smallest crop height as a fraction of the image's


@dataclass(frozen=True)
class Groups:
    """The probability, 0 (never) to 1 (always), of each group; the config's `augment` literals.

    Raises:
      InputError: a value is not a number from 0 to 1.
    """

    flip: float
    intensity: float
    distortion: float
    crop: float

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(
                    f"augment.{field.name} = {value!r} is not a probability: "
                    "give a number from 0 (never) to 1 (always)."
                )


def elastic_field(size: int) -> tuple[float, float]:
    """The elastic displacement's (alpha, sigma) for images of `size` x `size` pixels; sigma in pixels.

    Sigma scales with the size. Smoothing uniform noise leaves a standard deviation proportional to 1 / sigma,
    and the displacement shall scale with the size too, hence alpha with its square: 120 and 6 at 256, 480 and
    12 at 512. Sigma stays at 1 or above (sizes below 43), since a narrower Gaussian does not smooth; alpha
    follows it.
    """
    scale = size / REFERENCE_SIZE
    sigma = max(1.0, ELASTIC_SIGMA * scale)
    return ELASTIC_ALPHA / ELASTIC_SIGMA * scale * sigma, sigma


def elastic_affine(size: int) -> tuple[np.ndarray, float]:
    """The elastic distortion's affine part: three points (3, 2) float32 x, y; how far each may move, px.

    The points are corners of a square of two thirds of the image about its centre; each coordinate moves by a
    uniform amount up to the limit, and the affine map that takes the points to their new places is applied to
    the image before the displacement field (albumentations 0.3, `elastic_transform`).
    """
    centre, arm = size // 2, size // 3
    corners = np.array([[arm, arm], [arm, -arm], [-arm, -arm]], np.float32) + centre
    return corners, ELASTIC_AFFINE * size / REFERENCE_SIZE


def crop_heights(size: int) -> tuple[int, int]:
    """The smallest and the largest crop height in pixels: 176..256 at 256, 352..512 at 512."""
    return round(CROP_MINIMUM * size), size

"""The device engine of augmentation: groups A1..A4 in JAX, inside the compiled training step.

The parameters of an example are drawn first (`draw`) and applied then (`augment_example`). Flip, distortion and
crop are one map from output to input pixels, and the image is read once, bilinearly; albumentations reads it once a
transform and rounds in between, which is all that the two engines differ in. Whatever an example does not draw is
at its neutral value, so that all examples of a batch take the same path.

Every distortion is a short sum of a function of the row times a function of the column, so that the map is one
small matrix product. Elastic distortion needs no noise image for that: smoothing with a mirrored border multiplies
the k-th cosine (DCT-II) of a row or column by exp(-(pi k sigma / S)^2 / 2), which leaves the 51 lowest cosines a
direction, whatever the size, with independent and practically normal coefficients. The radial polynomial of the
optical distortion has five terms.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.augment import groups as description
from jaxpneumo.augment.groups import Groups

# Distortion.kind
NO_DISTORTION, ELASTIC, GRID, OPTICAL = range(4)

# Accelerators multiply matrices in less than float32 unless told, which would move points by half a pixel.
_product = partial(jnp.einsum, precision="highest")

# Powers 0 to 5 of the distance from the centre make the optical distortion.
_POWERS = 6

# The smoothing multiplies each cosine by a factor; those with a smaller one are left out (0.002 px in all).
_SMALLEST_COSINE = 1e-3

# (keys (B,), image uint8 (B, S, S), mask uint8 0/1 (B, S, S)) -> image float32 0..255, mask float32
DeviceAugment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Intensity(NamedTuple):
    """A2: image * contrast, 255 (image / 255) ** gamma, image + 255 brightness; one of them not neutral."""

    contrast: jax.Array  # neutral: 1
    gamma: jax.Array  # neutral: 1
    brightness: jax.Array  # neutral: 0


class Distortion(NamedTuple):
    """A3: which of the three, and the parameters of each."""

    kind: jax.Array  # int32 NO_DISTORTION, ELASTIC, GRID or OPTICAL
    elastic_noise: jax.Array  # (2, K, K), for x and y: orthonormal cosine coefficients of the noise
    elastic_corners: jax.Array  # (3, 2) x, y; how far each corner of `groups.elastic_affine` moves, px
    grid_widths: jax.Array  # (2, GRID_CELLS + 1), for x and y: widths of the cells, 1 is as before
    optical: jax.Array  # k of the radial model


class Crop(NamedTuple):
    """A4: the square that becomes the picture, in whole pixels."""

    height: jax.Array  # neutral: S
    left: jax.Array  # neutral: 0
    top: jax.Array  # neutral: 0


class Parameters(NamedTuple):
    """Everything that is random about one example."""

    flip: jax.Array  # bool
    intensity: Intensity
    distortion: Distortion
    crop: Crop


@lru_cache(maxsize=16)
def make_augment(flip: float, intensity: float, distortion: float, crop: float, size: int) -> DeviceAugment:
    """The augmentation of a batch, to be called in a compiled function; equal arguments give the same function.

    Args:
      flip, intensity, distortion, crop: probabilities of the groups A1..A4; 0 leaves a group out.
      size: height and width S of the images in pixels.

    Returns:
      A pure `augment(keys, image, mask) -> (image, mask)`: a batch (B,) of typed random keys, uint8 (B, S, S)
      grey values, uint8 (B, S, S) 0/1; returned are float32 (B, S, S) grey values 0..255, not rounded, and
      float32 (B, S, S) 0/1. An example's result depends on its own key and pictures alone.

    Raises:
      InputError: a probability is not a number from 0 to 1.
    """
    groups = Groups(flip, intensity, distortion, crop)

    def augment(keys: jax.Array, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        if image.shape[1:] != (size, size) or mask.shape != image.shape:
            raise ValueError(f"augmentation for {size}x{size} was given image {image.shape} and mask {mask.shape}")
        return jax.vmap(lambda key, *pictures: apply(draw(key, groups, size), *pictures))(keys, image, mask)

    return augment


def draw(key: jax.Array, groups: Groups, size: int) -> Parameters:
    """The parameters of one example, in the distributions of `groups`."""
    flip, intensity, distortion, crop = jax.random.split(key, 4)
    return Parameters(
        flip=jax.random.uniform(flip) < groups.flip,
        intensity=_draw_intensity(intensity, groups.intensity),
        distortion=_draw_distortion(distortion, groups.distortion, size),
        crop=_draw_crop(crop, groups.crop, size),
    )


def _draw_intensity(key: jax.Array, probability: float) -> Intensity:
    whether, which, value = jax.random.uniform(key, (3,))
    kind = jnp.where(whether < probability, jnp.floor(3 * which), -1)
    low, high = description.GAMMA_RANGE
    return Intensity(
        contrast=jnp.where(kind == 0, 1 + description.CONTRAST_LIMIT * (2 * value - 1), 1.0),
        gamma=jnp.where(kind == 1, low + (high - low) * value, 1.0),
        brightness=jnp.where(kind == 2, description.BRIGHTNESS_LIMIT * (2 * value - 1), 0.0),
    )


def _draw_distortion(key: jax.Array, probability: float, size: int) -> Distortion:
    noise, uniform = jax.random.split(key)
    cosines = _cosines(size).shape[1]
    cells = 2 * (description.GRID_CELLS + 1)
    whether, which, optical, *rest = jax.random.uniform(uniform, (3 + 6 + cells,))
    symmetric = 2 * jnp.stack([optical, *rest]) - 1
    _, limit = description.elastic_affine(size)
    return Distortion(
        kind=jnp.where(whether < probability, 1 + jnp.floor(3 * which).astype(jnp.int32), NO_DISTORTION),
        # Uniform noise in -1..1 has variance 1/3, which an orthonormal transform keeps.
        elastic_noise=jax.random.normal(noise, (2, cosines, cosines)) / np.sqrt(3),
        elastic_corners=limit * symmetric[1:7].reshape(3, 2),
        grid_widths=1 + description.GRID_LIMIT * symmetric[7:].reshape(2, -1),
        optical=description.OPTICAL_LIMIT * symmetric[0],
    )


def _draw_crop(key: jax.Array, probability: float, size: int) -> Crop:
    whether, *values = jax.random.uniform(key, (4,))
    low, high = description.crop_heights(size)
    height = jnp.where(whether < probability, _uniform_integer(values[0], low, high), size)
    return Crop(
        height, left=_uniform_integer(values[1], 0, size - height), top=_uniform_integer(values[2], 0, size - height)
    )


def _uniform_integer(value: jax.Array, low: int | jax.Array, high: int | jax.Array) -> jax.Array:
    """A uniform value in 0..1 as a whole number from low to high, both included."""
    return jnp.minimum(low + jnp.floor(value * (high - low + 1)).astype(jnp.int32), high)


def apply(parameters: Parameters, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Augments one example with given parameters.

    Args:
      parameters: as `draw` gives them.
      image, mask: uint8 (S, S) grey values and 0/1.

    Returns:
      float32 (S, S) grey values 0..255 and float32 (S, S) 0/1.
    """
    smooth, nearest = _maps(parameters, len(image))
    return _intensify(_bilinear(image, *smooth), parameters.intensity), _nearest(mask, *nearest).astype(jnp.float32)


def _intensify(image: jax.Array, intensity: Intensity) -> jax.Array:
    image = jnp.clip(image * intensity.contrast + 255 * intensity.brightness, 0, 255)
    return jnp.where(intensity.gamma == 1, image, 255 * (image / 255) ** intensity.gamma)


def _maps(parameters: Parameters, size: int) -> tuple[jax.Array, jax.Array]:
    """x and y, (2, S, S), of the input point that each output pixel shows: of the image, and of the mask.

    The mask's crop takes whole pixels of the distorted mask, as reading one pixel after the other does.
    """
    row = jnp.arange(size, dtype=jnp.float32)
    crop = parameters.crop
    scale = crop.height / size
    centre = jnp.clip((row + 0.5) * scale - 0.5, 0, crop.height - 1)
    whole = jnp.clip(jnp.floor((row + 0.5) * scale), 0, crop.height - 1)
    at_centre, at_whole = (
        _distort(parameters.distortion, parameters.flip, crop.left + position, crop.top + position, size)
        for position in (centre, whole)
    )
    return at_centre, at_whole


def _distort(distortion: Distortion, flip: jax.Array, x: jax.Array, y: jax.Array, size: int) -> jax.Array:
    """Input points x and y, (2, S, S), of the points in columns x (S,) and rows y (S,) of a distorted picture.

    They are functions of the rows times coefficients times functions of the columns. The functions are powers of
    the distance from the centre, the position behind the grid distortion, and the elastic cosines.
    """
    grid = distortion.kind == GRID
    columns = _functions(x, grid, distortion.grid_widths[0], size)
    rows = _functions(y, grid, distortion.grid_widths[1], size)
    return _product("ya,dab,xb->dyx", rows, _coefficients(distortion, flip, size), columns)


def _functions(position: jax.Array, grid: jax.Array, widths: jax.Array, size: int) -> jax.Array:
    """(S, N): each function's values at positions (S,); `grid` says whether there is a grid distortion."""
    # OpenCV's optical distortion has its centre at (S - 1) / 2 on this side of the map, and at S / 2 on the other.
    powers = jnp.vander((position - (size - 1) / 2) / size, _POWERS, increasing=True)
    moved = jnp.where(grid, _product("sc,c->s", _interpolate(_cells(size), position), widths), position)
    return jnp.concatenate([powers, moved[:, None], _interpolate(_cosines(size), position)], axis=1)


def _coefficients(distortion: Distortion, flip: jax.Array, size: int) -> jax.Array:
    """(2, N, N), for x and y: of the products of a function of the row and a function of the column."""
    kind = distortion.kind
    alpha, _ = description.elastic_field(size)
    count = _POWERS + 1 + distortion.elastic_noise.shape[-1]
    # u k (r^2 + r^4), where u is the distance from the centre across and v down: u^3 + u v^2 + u^5 + 2 u^3 v^2 + u v^4.
    radial = np.zeros((_POWERS, _POWERS), np.float32)
    radial[[0, 2, 0, 2, 4], [3, 1, 5, 3, 1]] = [1, 1, 1, 2, 1]
    optical = jnp.where(kind == OPTICAL, distortion.optical * size, 0.0) * np.stack([radial, radial.T])
    point = jnp.zeros((2, count, count))
    point = point.at[:, :_POWERS, :_POWERS].set(optical)
    point = point.at[:, 0, 0].set(jnp.where(kind == OPTICAL, 0.5, 0.0))
    point = point.at[0, 0, _POWERS].set(1.0).at[1, _POWERS, 0].set(1.0)
    noise = jnp.where(kind == ELASTIC, distortion.elastic_noise, 0.0)
    point = point.at[:, _POWERS + 1 :, _POWERS + 1 :].set(alpha * noise)
    # The elastic distortion's affine part and the flip come after the displacement.
    affine = _affine(jnp.where(kind == ELASTIC, distortion.elastic_corners, 0.0), flip, size)
    return _product("ij,jab->iab", affine[:, :2], point).at[:, 0, 0].add(affine[:, 2])


def _affine(corners: jax.Array, flip: jax.Array, size: int) -> jax.Array:
    """(2, 3): the affine map that takes the moved corners back, and then the flip."""
    fixed, _ = description.elastic_affine(size)
    moved = fixed + corners
    (a, b), (c, d) = moved[1] - moved[0], moved[2] - moved[0]
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    back = jnp.array([corners[0] - corners[1], corners[0] - corners[2]])
    change = _product("ij,jk->ki", inverse, back)
    affine = jnp.column_stack([jnp.eye(2) + change, -corners[0] - _product("ij,j->i", change, moved[0])])
    mirrored = affine.at[0].multiply(-1).at[0, 2].add(size - 1)
    return jnp.where(flip, mirrored, affine)


def _cosines(size: int) -> np.ndarray:
    """(S, K) float32: the orthonormal cosines along a row, times the share that the elastic smoothing keeps of each."""
    _, sigma = description.elastic_field(size)
    k = np.arange(size)
    kept = np.exp(-((np.pi * k * sigma / size) ** 2) / 2)
    k, kept = k[kept > _SMALLEST_COSINE], kept[kept > _SMALLEST_COSINE]
    cosines = np.cos(np.pi * k * (np.arange(size)[:, None] + 0.5) / size)
    return (cosines * np.where(k == 0, 1, np.sqrt(2)) / np.sqrt(size) * kept).astype(np.float32)


def _cells(size: int) -> np.ndarray:
    """(S, GRID_CELLS + 1) float32: how much of each cell's width lies before each pixel, px.

    Cells are size // GRID_CELLS wide, what remains is one more, and every cell holds both of its borders:
    albumentations' `generate_grid`.
    """
    width = size // description.GRID_CELLS
    cells = np.zeros((size, description.GRID_CELLS + 1), np.float32)
    for i in range(description.GRID_CELLS + 1):
        cell = slice(i * width, min((i + 1) * width, size))
        cells[cell, i] = np.linspace(0, width, cell.stop - cell.start)
        cells[cell.stop :, i] = width
    return cells


def _interpolate(table: np.ndarray, position: jax.Array) -> jax.Array:
    """Rows of a table (S, N) at positions (S,) between them, linearly: (S, N)."""
    below = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, len(table) - 2)
    share = (position - below)[:, None]
    rows = jnp.asarray(table)
    return rows[below] * (1 - share) + rows[below + 1] * share


def _bilinear(image: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """uint8 (S, S) at points, mirrored at the border without repeating its pixels: float32."""
    x, y = _reflect(x, len(image)), _reflect(y, len(image))
    left, top = jnp.floor(x), jnp.floor(y)
    # One read instead of four: a pixel and its right, lower and lower right neighbour in 32 bits. Points on the
    # last row or column give their neighbours beyond it no weight.
    wide = jnp.pad(image, ((0, 1), (0, 1))).astype(jnp.uint32)
    packed = wide[:-1, :-1] | wide[:-1, 1:] << 8 | wide[1:, :-1] << 16 | wide[1:, 1:] << 24
    four = _pixels_at(packed, left, top)
    a, b, c, d = ((four >> shift & 255).astype(jnp.float32) for shift in (0, 8, 16, 24))
    right, down = x - left, y - top
    upper, lower = a + right * (b - a), c + right * (d - c)
    return upper + down * (lower - upper)


def _nearest(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """(S, S) at the pixels nearest to points, mirrored at the border."""
    return _pixels_at(mask, jnp.round(_reflect(x, len(mask))), jnp.round(_reflect(y, len(mask))))


def _reflect(position: jax.Array, size: int) -> jax.Array:
    """Positions beyond 0..size - 1 mirrored back into it, as often as it takes."""
    period = 2 * (size - 1)
    return (size - 1) - jnp.abs(position - period * jnp.floor(position / period) - (size - 1))


def _pixels_at(array: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """array (S, S) at whole positions x, y inside it."""
    index = (y * len(array) + x).astype(jnp.int32)
    return array.reshape(-1).at[index].get(mode="promise_in_bounds")

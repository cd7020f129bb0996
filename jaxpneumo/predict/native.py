"""Probabilities at the network's size to masks at the radiographs' native sizes, on the device.

A compiled function has fixed shapes, an archive many sizes. So masks lie at the upper left of a canvas whose sides
are multiples of BUCKET, the smallest that holds every image of a batch: one program a canvas, not one a size. The
true sizes come as tables, made on the host, of where each native row and column lies between those of the network.
Interpolation between two neighbours is all there is to a pixel, and it does not know the canvas: masks are, bit for
bit, those of a canvas of exactly the native size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.predict.postprocess import NATIVE_AREA

BUCKET = 256
OUTSIDE = -1.0


class Grid(NamedTuple):
    """Where the canvas's rows and columns lie among the network's, of B images; a tree of arrays.

    Attributes:
      row: int32 (B, H), the network's row just above; -1 below the image's own last row.
      row_share: float32 (B, H), share of the row after that one.
      column, column_share: the same along the width, (B, W).
    """

    row: np.ndarray
    row_share: np.ndarray
    column: np.ndarray
    column_share: np.ndarray


@dataclass(frozen=True)
class NativeMask:
    """One mask as it comes from the device.

    Attributes:
      bits: uint8 (canvas height, canvas width / 8), as np.packbits along the rows has them.
      height, width: native size, in pixels.
      area: pixels of the mask.
    """

    bits: np.ndarray
    height: int
    width: int
    area: int

    def unpack(self) -> np.ndarray:
        """The mask, uint8 (height, width) of 0 and 1."""
        return np.unpackbits(self.bits[: self.height, : -(-self.width // 8)], axis=-1, count=self.width)


def canvas(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the smallest canvas for images of these (height, width)."""
    return tuple(-(-max(side) // BUCKET) * BUCKET for side in zip(*sizes, strict=True))


def native_grid(sizes: Sequence[tuple[int, int]], size: int, batch: int, shape: tuple[int, int] | None = None) -> Grid:
    """The grid of a batch.

    Args:
      sizes: native (height, width) of its images, at most `batch`; the others stay empty.
      size: side of the network's output.
      batch: B.
      shape: (H, W); None is `canvas(sizes)`.
    """
    height, width = shape or canvas(sizes)
    grid = Grid(
        *(np.full((batch, height), -1, np.int32), np.zeros((batch, height), np.float32)),
        *(np.full((batch, width), -1, np.int32), np.zeros((batch, width), np.float32)),
    )
    for i, (rows, columns) in enumerate(sizes):
        grid.row[i, :rows], grid.row_share[i, :rows] = _neighbours(rows, size)
        grid.column[i, :columns], grid.column_share[i, :columns] = _neighbours(columns, size)
    return grid


def _neighbours(side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of `side` pixels among those of `size`, which end at the outer centres as OpenCV's do."""
    place = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    return place.astype(np.int32), place % 1


def to_native(probability: jax.Array, grid: Grid) -> jax.Array:
    """(B, S, S) probabilities resized bilinearly onto the canvas (B, H, W); OUTSIDE beyond each image."""
    return jax.vmap(_to_native)(probability, grid)


def _to_native(probability: jax.Array, grid: Grid) -> jax.Array:
    last = probability.shape[0] - 1
    left, top = jnp.maximum(grid.column, 0), jnp.maximum(grid.row, 0)
    # Columns first: there are fewer rows then.
    lower, upper = probability[:, left], probability[:, jnp.minimum(left + 1, last)]
    wide = lower + (upper - lower) * grid.column_share
    lower, upper = wide[top], wide[jnp.minimum(top + 1, last)]
    native = lower + (upper - lower) * grid.row_share[:, None]
    return jnp.where((grid.row >= 0)[:, None] & (grid.column >= 0), native, OUTSIDE)


def native_masks(
    probability: jax.Array, grid: Grid, smallest: jax.Array, thresholds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masks at native size: pixels that reach the first threshold, where the image has enough of them.

    Args:
      probability: float32 (B, S, S).
      grid: of `native_grid`.
      smallest: int32 (B, T): a mask is emptied unless, for each of the T thresholds, at least so many pixels reach it.
      thresholds: float32 (T,).

    Returns:
      uint8 (B, H, W / 8), bits along the rows as np.packbits has them; int32 (B,) pixels of each mask.
    """

    def one(image: tuple[jax.Array, Grid, jax.Array]) -> tuple[jax.Array, jax.Array]:
        probability, grid, smallest = image
        # One threshold after the other, one image after the other: resize, comparison and packing then are one
        # loop over the pixels, and the native probabilities never exist as an array.
        bits = jax.lax.map(lambda level: jnp.packbits(_to_native(probability, grid) >= level, axis=-1), thresholds)
        area = jnp.sum(jax.lax.population_count(bits).astype(jnp.int32), axis=(1, 2))
        kept = jnp.all(area >= smallest)
        return jnp.where(kept, bits[0], 0), jnp.where(kept, area[0], 0)

    return jax.lax.map(one, (probability, grid, smallest))


def pixels_at_least(threshold: float, height: int, width: int) -> int:
    """The smallest whole number of native pixels that is not below an area in pixels of a 1024x1024 image."""
    return ceil(threshold * height * width / NATIVE_AREA)

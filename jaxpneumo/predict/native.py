"""Makes masks at native size from probabilities at the network's size, on the device.

A compiled function has fixed shapes, but the radiographs of an archive have many sizes. So each mask lies in the upper
left corner of a canvas. The sides of the canvas are multiples of BUCKET, and it is the smallest one that holds all
images of the batch. JAX then compiles one program per canvas size, not one per image size. The host computes tables
with the position of each native row and column among the rows and columns of the network's output. A pixel depends
only on the interpolation between its neighbours, not on the canvas. So the masks are bit for bit the same as on a
canvas of exactly the native size.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.process.errors import InputError

# What needs JAX is in the functions that a device runs: a prediction without JAX makes its masks by the others.
if TYPE_CHECKING:
    import jax

BUCKET = 256
OUTSIDE = -1.0
GATE, CLASSIFIER = "gate", "classifier"


class Grid(NamedTuple):
    """Positions of the canvas's rows and columns in the network's output, for B images; a tree of arrays.

    Attributes:
      row: int32 (B, H), the nearest row of the network above each canvas row; -1 below the last row of the image.
      row_share: float32 (B, H), the interpolation weight of the next row.
      column, column_share: the same for the columns, (B, W).
    """

    row: np.ndarray
    row_share: np.ndarray
    column: np.ndarray
    column_share: np.ndarray


@dataclass(frozen=True)
class NativeMask:
    """One mask as the device returns it.

    Attributes:
      bits: uint8 (canvas height, canvas width / 8), packed along the rows in the order of np.packbits.
      height, width: native size, in pixels.
      area: number of pixels in the mask.
      finding: the classifier's probability that the image shows anything; None without a classifier.
      emptied_by: GATE or CLASSIFIER, whose answer emptied a mask that had pixels; "" for all other masks.
    """

    bits: np.ndarray
    height: int
    width: int
    area: int
    finding: float | None = None
    emptied_by: str = ""

    def unpack(self) -> np.ndarray:
        """The mask, uint8 (height, width) of 0 and 1."""
        return np.unpackbits(self.bits[: self.height, : -(-self.width // 8)], axis=-1, count=self.width)


def canvas(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the smallest canvas for images with these sizes (height, width)."""
    return tuple(-(-max(side) // BUCKET) * BUCKET for side in zip(*sizes, strict=True))


def native_grid(sizes: Sequence[tuple[int, int]], size: int, batch: int, shape: tuple[int, int] | None = None) -> Grid:
    """Makes the grid of a batch.

    Args:
      sizes: native (height, width) of each image. If there are fewer than `batch`, the remaining images stay empty.
      size: side of the network's output.
      batch: B.
      shape: (H, W) of the canvas; None uses `canvas(sizes)`.
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
    """Positions of the centres of `side` pixels among `size` pixels: the lower neighbour, and the next one's weight.

    Positions are clipped to the outermost centres, as in OpenCV.
    """
    place = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    return place.astype(np.int32), place % 1


def to_native(probability: "jax.Array", grid: Grid) -> "jax.Array":
    """Resizes probabilities (B, S, S) bilinearly to the canvas (B, H, W). Pixels outside of an image are OUTSIDE."""
    import jax

    return jax.vmap(_to_native)(probability, grid)


def _to_native(probability: "jax.Array", grid: Grid) -> "jax.Array":
    import jax.numpy as jnp

    last = probability.shape[0] - 1
    left, top = jnp.maximum(grid.column, 0), jnp.maximum(grid.row, 0)
    # Interpolates along the width first, while there are fewer rows.
    lower, upper = probability[:, left], probability[:, jnp.minimum(left + 1, last)]
    wide = lower + (upper - lower) * grid.column_share
    lower, upper = wide[top], wide[jnp.minimum(top + 1, last)]
    native = lower + (upper - lower) * grid.row_share[:, None]
    return jnp.where((grid.row >= 0)[:, None] & (grid.column >= 0), native, OUTSIDE)


def to_native_on_host(probability: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same as `to_native` by NumPy, of one image: float32 (S, S) -> float32 (height, width).

    The two may differ in the last bit, since compilers fuse the multiplication with the addition.
    """
    (row, row_share), (column, column_share) = (_neighbours(side, len(probability)) for side in (height, width))
    right, below = (np.minimum(place + 1, len(probability) - 1) for place in (column, row))
    left = probability[:, column]
    wide = left + (probability[:, right] - left) * column_share.astype(np.float32)
    upper = wide[row]
    return upper + (wide[below] - upper) * row_share.astype(np.float32)[:, None]


def native_masks(
    probability: "jax.Array", grid: Grid, smallest: "jax.Array", thresholds: "jax.Array"
) -> "tuple[jax.Array, jax.Array]":
    """Computes masks at native size. A mask has all pixels that reach the first threshold.

    Args:
      probability: float32 (B, S, S).
      grid: the result of `native_grid`.
      smallest: int32 (B, T), the smallest area in pixels at each of the T thresholds. The mask is emptied if fewer
        pixels reach any of the thresholds.
      thresholds: float32 (T,).

    Returns:
      uint8 (B, H, W / 8), packed along the rows in the order of np.packbits; int32 (B,), the area of each mask in
      pixels.
    """

    import jax
    import jax.numpy as jnp

    def one(image: "tuple[jax.Array, Grid, jax.Array]") -> "tuple[jax.Array, jax.Array]":
        probability, grid, smallest = image
        # Loops over images and thresholds. So resizing, comparison and packing are one loop over the pixels, and the
        # probabilities at native size are never stored as an array.
        bits = jax.lax.map(lambda level: jnp.packbits(_to_native(probability, grid) >= level, axis=-1), thresholds)
        area = jnp.sum(jax.lax.population_count(bits).astype(jnp.int32), axis=(1, 2))
        kept = jnp.all(area >= smallest)
        return jnp.where(kept, bits[0], 0), jnp.where(kept, area[0], 0)

    return jax.lax.map(one, (probability, grid, smallest))


def pixels_at_least(threshold: float, height: int, width: int) -> int:
    """Converts an area in pixels of a 1024x1024 image to native pixels, rounded up."""
    return ceil(threshold * height * width / NATIVE_AREA)


def no_numbers(which: str) -> InputError:
    """The error for probabilities of "network" or "gate" that are not finite: at any threshold they are empty masks."""
    return InputError(
        f"the {which}'s probabilities are no finite numbers, which is no result: its weights are damaged, or its "
        "training failed. Take another run."
    )


def shrink(image: "jax.Array", size: int) -> "jax.Array":
    """Makes images smaller by averaging over areas, as `data.resize` does: uint8 (B, S, S) -> uint8 (B, size, size)."""
    import jax.numpy as jnp

    weights = _area_weights(image.shape[-1], size)
    product = functools.partial(jnp.einsum, precision="highest")
    return jnp.round(product("ih,bhw,jw->bij", weights, image.astype(jnp.float32), weights)).astype(jnp.uint8)


def _area_weights(before: int, after: int) -> np.ndarray:
    """The share of each of `before` pixels in the mean of each of `after` larger ones, (after, before)."""
    edges = np.linspace(0, before, after + 1)
    low, high = np.maximum(edges[:-1, None], np.arange(before)), np.minimum(edges[1:, None], np.arange(1, before + 1))
    return (np.maximum(high - low, 0) * after / before).astype(np.float32)

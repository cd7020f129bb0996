"""Groups of images with scores of their own: by sex, view, age, size of the finding, and one or several regions."""

from itertools import pairwise

import numpy as np

from jaxpneumo.data.dataset import Index
from jaxpneumo.predict.postprocess import NATIVE_AREA

AGES = (18, 40, 60, 75)
# Pixels of a 1024x1024 image: the papers' removal threshold, then near the quartiles of the challenge's masks
SIZES = (2048, 4096, 8192, 18432)


def strata(index: Index, rows: np.ndarray, lesions: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Stratum, group and (N,) bool of the N rows, for every group that has images.

    Groups of one stratum do not overlap. The strata "mask size" and "regions" hold positive images only: a
    negative image has neither.

    Args:
      index: of the data set.
      rows: of the images.
      lesions: (N,) connected regions of their true masks. Rows of a label csv need not be regions.
    """
    positive = index.positive[rows]
    area = index.mask_area[rows] * (NATIVE_AREA / (index.height[rows] * index.width[rows]))
    several = lesions > 1
    groups: list[tuple[str, str, np.ndarray]] = []
    for stratum, column in (("sex", index.sex[rows]), ("view", index.view[rows])):
        groups += [(stratum, str(value) or "unknown", column == value) for value in np.unique(column)]
    groups += [("age", name, member) for name, member in _bands(index.age[rows], AGES, "years")]
    groups.append(("age", "unknown", np.isnan(index.age[rows])))
    groups += [("mask size", name, member & positive) for name, member in _bands(area, SIZES, "px")]
    groups += [("regions", "single", positive & ~several), ("regions", "several", positive & several)]
    return [group for group in groups if group[2].any()]


def _bands(values: np.ndarray, edges: tuple[int, ...], unit: str) -> list[tuple[str, np.ndarray]]:
    names = [f"below {edges[0]:,} {unit}"]
    names += [f"{low:,} to below {high:,} {unit}" for low, high in pairwise(edges)]
    names.append(f"{edges[-1]:,} {unit} and more")
    band = np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right"))
    return [(name, band == number) for number, name in enumerate(names)]

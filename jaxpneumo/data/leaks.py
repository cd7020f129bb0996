"""Images that validation and training should not share: near-duplicates, found by a perceptual hash.

The hash has the signs of the 255 lowest-frequency coefficients (but the mean) of the discrete cosine
transform of the image at 64 x 64 (Zauner, Implementation and benchmarking of perceptual image hash functions,
2010, with signs for the median and 16 x 16 coefficients for 8 x 8: chest radiographs are too alike for 64 bits).

THRESHOLD was set on 118 challenge images of 98 patients at 256 x 256. Images of different patients, also shifted,
turned, cropped and mirrored against each other (123,732 pairs), differ in 73 bits or more, 1 in 10,000 in 78 or
fewer, 1 in 100 in 94 or fewer. A power of ten less takes five to nine bits, so less than one of the 13 million pairs
of a split of the challenge's images is expected at 48. The nearest two exposures of one patient differ in 62. The
same image recompressed (JPEG quality 50), equalised, with another window or gamma, with noise, turned by
1 degree, moved or cropped by 1 % stays within 48, and so do 99 % turned by 2 degrees and 86 % cropped by 2 % a
side. A crop of 4 %, a mirrored image and large burnt-in text are missed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

THRESHOLD = 48  # bits of 255
COEFFICIENTS, SIDE = 16, 64
BLOCK = 256  # hashes compared with all others at a time


@dataclass(frozen=True)
class Pairs:
    """Near-duplicates: P pairs of rows, `first` < `second` (int64), and their distances in bits."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.distance)


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """The perceptual hash of one image.

    Args:
      image: uint8 (H, W), grey.

    Returns:
      uint64 (4,), 255 bits and a zero; the number of bits in which two hashes differ says how unlike two images are.
    """
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    coefficients = cv2.dct(small)[:COEFFICIENTS, :COEFFICIENTS].ravel()
    coefficients[0] = 0  # the mean
    # Rounding must not decide the bits of a flat image.
    return np.packbits(coefficients > 1e-3).view(np.uint64)


def near_duplicates(images: Iterable[np.ndarray], threshold: int = THRESHOLD) -> Pairs:
    """All pairs of images whose hashes differ in at most `threshold` bits.

    Args:
      images: uint8 (H, W) each, read once in their order.
      threshold: bits of 255.
    """
    hashes = np.array([perceptual_hash(image) for image in images]).reshape(-1, COEFFICIENTS * COEFFICIENTS // 64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(hashes), BLOCK):
        block, others = hashes[start : start + BLOCK], hashes[start:]
        distance = np.zeros((len(block), len(others)), np.uint16)
        for word in range(hashes.shape[1]):
            distance += np.bitwise_count(block[:, None, word] ^ others[None, :, word])
        first, second = np.nonzero(np.triu(distance <= threshold, 1))
        found.append((first + start, second + start, distance[first, second].astype(np.int64)))
    columns = zip(*found, strict=True) if found else ([np.zeros(0, np.int64)],) * 3
    return Pairs(*(np.concatenate(column) for column in columns))


def across(pairs: Pairs, train: np.ndarray, validation: np.ndarray) -> Pairs:
    """For every validation row with near-duplicates in training: the nearest one.

    Returns:
      `first` the validation rows, ascending and each once, `second` the training rows.
    """
    first = np.concatenate([pairs.first, pairs.second])
    second = np.concatenate([pairs.second, pairs.first])
    distance = np.tile(pairs.distance, 2)
    leaks = np.flatnonzero(np.isin(first, validation) & np.isin(second, train))
    leaks = leaks[np.lexsort((second[leaks], distance[leaks], first[leaks]))]
    leaks = leaks[np.unique(first[leaks], return_index=True)[1]]
    return Pairs(first[leaks], second[leaks], distance[leaks])

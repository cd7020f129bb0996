"""Native images to the sizes of the arrays: averages of areas, exactly as OpenCV's INTER_AREA rounds them.

OpenCV averages 2 x 2 pixels fast and 4 x 4 slowly. If an image has four times the side of an array (1024 and 256),
this module computes the same values in a quarter of the time.
"""

import cv2
import numpy as np


def resize_to_squares(image: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Resizes an image to squares of several sizes.

    Args:
      image: (H, W) uint8.
      sizes: side lengths.

    Returns:
      (size, size) uint8 for every size: the values of `cv2.resize` with INTER_AREA.
    """
    made: dict[int, np.ndarray] = {}
    for size in sorted(sizes, reverse=True):
        if image.shape == (4 * size, 4 * size):
            half = made[2 * size] if 2 * size in made else _resize(image, 2 * size)
            made[size] = _quarter(image, half)
        else:
            made[size] = _resize(image, size)
    return [made[size] for size in sizes]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _quarter(image: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Averages of 4 x 4 pixels, halves to even, of an image (4 n, 4 n) and the same at half the side.

    The average of 2 x 2 is (sum + 2) // 4. Taken twice that gives q, and the sum of all 16 pixels is 16 q + g with
    -16 <= g <= 8. The sum modulo 32, which bytes can add, therefore tells g, and g how q is to be rounded.
    """
    twice = _resize(half, half.shape[0] // 2)
    rows = np.ascontiguousarray(image).reshape(half.shape[0] // 2, 4, -1)
    sums = rows[:, 0] + rows[:, 1]
    sums += rows[:, 2]
    sums += rows[:, 3]
    # Four neighbouring bytes at once: the product's highest byte is their sum.
    sums = ((sums.view("<u4") & 0x1F1F1F1F) * np.uint32(0x01010101) >> 24).astype(np.uint8)
    g = (sums - twice * 16) & 31  # modulo 32
    odd = twice & 1
    return twice + ((g == 8) & odd) - ((g >= 16) & (g < 24 + odd))

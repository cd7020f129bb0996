"""The challenge's run-length code of masks.

A code is "start length gap length gap length ...": pixels are counted down the columns, left to right, from
0; the first number is where the first run starts, every later gap counts from the end of the run before it.
"-1" stands for a mask without pixels.

Both directions work on the columns that the mask touches only: most of the time goes into transposing.
"""

from collections.abc import Iterable

import numpy as np

EMPTY = "-1"


def encode(mask: np.ndarray) -> str:
    """Run-length code of a mask.

    Args:
      mask: (H, W), any type; every value but 0 belongs to the mask.

    Returns:
      The code with as few runs as possible, "-1" for an empty mask.
    """
    inside = mask != 0
    columns = np.flatnonzero(inside.any(axis=0))
    if columns.size == 0:
        return EMPTY
    band = inside[:, columns[0] : columns[-1] + 1]
    pixels = np.zeros(band.size + 2, np.bool_)
    pixels[1:-1] = band.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + columns[0] * mask.shape[0]
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))


def decode(code: str, height: int, width: int) -> np.ndarray:
    """The mask of a run-length code.

    Args:
      code: as `encode` gives it; blanks around it do not matter.
      height, width: of the image that the code belongs to.

    Returns:
      (height, width) uint8, 1 inside the mask, else 0.

    Raises:
      ValueError: the code is malformed or leaves the image; the text says how.
    """
    mask = np.zeros((height, width), np.uint8)
    if code.strip() != EMPTY:
        columns, counts = decode_columns(code, height, width), _counts(code, height * width)
        touched = slice(counts[0] // height, -(-counts.sum() // height))
        mask[:, touched] = columns[touched].T
    return mask


def decode_columns(code: str, height: int, width: int) -> np.ndarray:
    """The mask of a run-length code transposed, as the code goes: (width, height) uint8; otherwise as `decode`."""
    pixels = np.zeros(height * width, np.uint8)
    if code.strip() != EMPTY:
        counts = _counts(code, pixels.size)
        runs = np.repeat(np.arange(1, counts.size, dtype=np.uint8) & 1, counts[1:])
        pixels[counts[0] : counts[0] + runs.size] = runs
    return pixels.reshape(width, height)


def simplify(code: str, height: int, width: int) -> str:
    """What `encode(decode(code, height, width))` gives, without making the mask; errors as in `decode`."""
    if code.strip() == EMPTY:
        return EMPTY
    counts = _counts(code, height * width)
    meeting = np.flatnonzero(counts[2::2] == 0) * 2 + 1  # a run begins where the last one ends
    if meeting.size:
        edges = np.delete(np.cumsum(counts), np.append(meeting, meeting + 1))
        counts = np.diff(edges, prepend=0)
    return " ".join(map(str, counts.tolist()))


def union(codes: Iterable[str], height: int, width: int) -> np.ndarray:
    """The mask of all codes together, (height, width) uint8; arguments and errors as in `decode`."""
    mask = np.zeros((height, width), np.uint8)
    for code in codes:
        mask |= decode(code, height, width)
    return mask


def area(code: str, height: int, width: int) -> int:
    """Pixels of a code's mask, without making it; arguments and errors as in `decode`."""
    return 0 if code.strip() == EMPTY else int(_counts(code, height * width)[1::2].sum())


def _counts(code: str, size: int) -> np.ndarray:
    """The numbers of a code, checked against an image of `size` pixels; int64."""
    tokens = code.split()
    if not tokens:
        raise ValueError('the run-length code is empty; a mask without pixels is "-1"')
    if len(tokens) % 2:
        raise ValueError(f"the run-length code has {len(tokens)} numbers; starts and lengths come in pairs")
    try:
        counts = np.array(tokens, dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError("the run-length code holds something other than whole numbers") from None
    wrong = counts < (np.arange(counts.size) & 1)
    if wrong.any():
        place = int(np.argmax(wrong))
        what = "length" if place & 1 else "gap" if place else "start"
        raise ValueError(f"the run-length code has the {what} {counts[place]} (number {place + 1})")
    # In Python's integers: 64 bits could overflow.
    excess = sum(map(int, tokens)) - size if counts.max() > size else int(counts.sum()) - size
    if excess > 0:
        raise ValueError(f"the run-length code leaves the image by {excess} pixels")
    return counts

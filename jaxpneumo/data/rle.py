"""The challenge's run-length code of masks.

A code is "start length gap length gap length ...": pixels are counted down the columns, left to right, from
0; the first number is where the first run starts, every later gap counts from the end of the run before it.
"-1" stands for a mask without pixels.

Both directions work on the columns that the mask touches only: most of the time goes into transposing.
"""

import re
from collections.abc import Iterable

import numpy as np

EMPTY = "-1"
ABSOLUTE = "absolute (starts that count from the image's first pixel instead of from the end of the run before)"
ENDS = "starts and ends instead of starts and lengths"
# int() reads more than the challenge does: "1_0", "+5", digits of other scripts.
_FOREIGN = re.compile(r"[^-0-9\s]|-0", re.ASCII)


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


def check_dialect(code: str, height: int, width: int) -> None:
    """Raises ValueError in words for a code of three runs or more, two if it leaves the image, that reads as another.

    In an ABSOLUTE code no run begins before the end of the one before it. In the challenge's the gaps would have to
    grow faster than the mask does, from its first pixel's distance to the image's first one: none of the 3,576 codes
    of the challenge with several runs (10 to 1,148) is like that, and every one of them written in absolute starts is.
    """
    numbers = _numbers(code)
    if numbers is None or not (dialect := _dialect(code)):
        return
    if numbers.size >= 6 or numbers.sum() > height * width:
        raise ValueError(f"the run-length code seems to be {dialect}")


def file_dialect(codes: Iterable[tuple[int, str]]) -> tuple[int, str] | None:
    """The dialect of a file's codes together: the first line that shows it, and ABSOLUTE or ENDS.

    It is another one if most codes of several runs read as that. One run proves nothing; two do only in several codes,
    and where no code speaks for the challenge's.

    Args:
      codes: line and code of every row.
    """
    runs = [(line, len(code.split()) // 2, _dialect(code)) for line, code in codes]
    ours = sum(dialect == "" for _, _, dialect in runs)
    for dialect in (ABSOLUTE, ENDS):
        found = [(line, count) for line, count, its in runs if its == dialect and (count > 2 or not ours)]
        if len(found) > ours and sum(count - 1 for _, count in found) >= 2:
            return found[0][0], dialect
    return None


def _dialect(code: str) -> str | None:
    """ABSOLUTE, ENDS or "" for a code of several runs; None for one run and for what is malformed."""
    dialect = None
    if len(code.split(maxsplit=3)) < 4:
        return None
    # The first runs tell almost always.
    for part in (" ".join(code.split(maxsplit=6)[:6]), code):
        numbers = _numbers(part)
        if numbers is None:
            return None
        starts, lengths = numbers[::2], numbers[1::2]
        if (starts[1:] >= starts[:-1] + lengths[:-1]).all():
            dialect = ABSOLUTE
        elif (numbers[1:] > numbers[:-1]).all():
            dialect = ENDS
        else:
            return ""
    return dialect


def _numbers(code: str) -> np.ndarray | None:
    """The numbers of a well-formed code, int64; None for any other."""
    try:
        return _counts(code, 1 << 62)
    except ValueError:
        return None


def _counts(code: str, size: int) -> np.ndarray:
    """The numbers of a code, checked against an image of `size` pixels; int64."""
    tokens = code.split()
    if not tokens:
        raise ValueError("the run-length code is empty; -1 means no pneumothorax")
    try:
        if _FOREIGN.search(code):
            raise ValueError
        counts = np.array(tokens, dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError("the run-length code holds something other than whole numbers in the digits 0 to 9") from None
    if len(tokens) % 2:
        raise ValueError(f"the run-length code has {len(tokens)} numbers; starts and lengths come in pairs")
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

"""Radiographs with an outline and, in strips above and below, text. No pixel is covered but by the outline."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from jaxpneumo.predict.pictures import COLORS, FONT, GREY, SMALLEST_TEXT, WHITE, overlay
from jaxpneumo.process.files import safe_name

GROUND = 24  # grey level of the strips, as of contact sheets

Line = tuple[str, tuple[int, int, int]]  # text in ASCII, and its colour as RGB
OUTLINED: Line = ("outlined: prediction", COLORS["prediction"])


def explained(image: np.ndarray, mask: np.ndarray, above: Sequence[Line], note: str) -> np.ndarray:
    """A radiograph with the outline of a mask, lines of text above it, and below it the outline's colour and a note.

    Args:
      image: uint8 (H, W), grey.
      mask: (H, W), 0 = background.
      above: what was found, by what.
      note: such as that the result is for research only.

    Returns:
      uint8 (H', W, 3), RGB, with H' > H.

    Raises:
      InputError: as `overlay`.
    """
    return captioned(overlay(image, mask), above, [*([OUTLINED] if mask.any() else []), grey(note)])


def found(area: int, area_mm2: float | None, score: float, side: str | None) -> Line:
    """What was found, such as "found: score 0.997, 1,207 mm2, left"."""
    size = ""
    if area:
        size = f", {area:,} pixels" if area_mm2 is None else f", {area_mm2:,.0f} mm2"
    return white(f"{'found' if area else 'nothing found'}: score {score:.3f}{size}{f', {side}' if side else ''}")


def title(uid: str) -> Line:
    """An image id as the font of pictures can show it: one in another script as the name of its files."""
    return white(uid if uid.isascii() else safe_name(uid))


def captioned(picture: np.ndarray, above: Sequence[Line], below: Sequence[Line]) -> np.ndarray:
    """Adds lines of text above and below a picture. Lines that are too long are broken.

    Args:
      picture: uint8 (H, W, 3), RGB.
      above, below: lines with their colours.

    Returns:
      uint8 (H', W, 3) with H' > H. The picture is in it unchanged, from row `caption_height(above, W, H)` on.
    """
    height, width = picture.shape[:2]
    return np.concatenate([_strip(above, width, height), picture, _strip(below, width, height)])


def caption_height(lines: Sequence[Line], width: int, height: int) -> int:
    """Rows of the strip with these lines for a picture of this size."""
    scale = _scale(width, height)
    return round(14 * scale) + round(30 * scale) * len(_broken(lines, width, scale))


def white(text: str) -> Line:
    """A line of plain text. What is not ASCII becomes a question mark: the font has nothing else."""
    return text.encode("ascii", "replace").decode(), WHITE


def grey(text: str) -> Line:
    """A line of less important text."""
    return white(text)[0], GREY


def _strip(lines: Sequence[Line], width: int, height: int) -> np.ndarray:
    scale = _scale(width, height)
    strip = np.full((caption_height(lines, width, height), width, 3), GROUND, np.uint8)
    for number, (text, color) in enumerate(_broken(lines, width, scale)):
        place = _margin(scale), round(7 * scale) + round(30 * scale) * number + round(22 * scale)
        cv2.putText(strip, text, place, FONT, scale, color, _thickness(scale), cv2.LINE_AA)
    return strip


def _broken(lines: Sequence[Line], width: int, scale: float) -> list[Line]:
    """The lines, broken between words, or within a word that is wider than the picture."""
    room = width - 2 * _margin(scale)

    def fits(text: str) -> bool:
        return cv2.getTextSize(text, FONT, scale, _thickness(scale))[0][0] <= room

    broken: list[Line] = []
    for text, color in lines:
        line = ""
        for word in text.split():
            if line and fits(f"{line} {word}"):
                line = f"{line} {word}"
                continue
            if line:
                broken.append((line, color))
            while len(word) > 1 and not fits(word):
                count = max(1, next((n for n in range(len(word) - 1, 0, -1) if fits(word[:n])), 1))
                broken.append((word[:count], color))
                word = word[count:]
            line = word
        broken.append((line, color))
    return broken


def _scale(width: int, height: int) -> float:
    """The text grows with the picture's width, but not without bounds where that is far more than its height."""
    return max(SMALLEST_TEXT, 0.6 * min(width, 4 * height) / 1024)


def _margin(scale: float) -> int:
    return math.ceil(12 * scale)


def _thickness(scale: float) -> int:
    return max(1, round(scale))

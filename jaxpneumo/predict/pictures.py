"""Pictures for readers: outlines on radiographs, and contact sheets."""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxpneumo.process.errors import InputError

# RGB. Orange and sky blue of Okabe and Ito's palette for all kinds of colour vision. Both are visible on all greys.
COLORS = {"prediction": (230, 159, 0), "truth": (86, 180, 233)}
WHITE, GREY = (255, 255, 255), (170, 170, 170)
DISCLAIMER = "not a medical device"
FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALLEST_TEXT = 0.35  # letters run together below this font scale


def overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None = None,
    width: int | None = None,
) -> np.ndarray:
    """Outlines the prediction (orange) and the truth (blue, dashed) on a radiograph.

    Args:
      image: uint8 (H, W), grey.
      prediction: mask (H, W), 0 = background.
      truth: mask of the same shape; None if the truth is unknown.
      width: shrinks the image to this width in pixels before drawing. Shrinking the result would blur the lines.

    Returns:
      uint8 (H, W, 3), RGB; (round(H * width / W), width, 3) if shrunk.

    Raises:
      InputError: the image is not uint8 (H, W), or a mask has another shape.
    """
    if image.dtype != np.uint8 or image.ndim != 2:
        raise InputError(f"an overlay needs a grey uint8 image (height, width), not {image.dtype} {image.shape}.")
    masks = {"prediction": prediction} | ({} if truth is None else {"truth": truth})
    masks = {name: (np.asarray(mask) != 0).astype(np.uint8) for name, mask in masks.items()}
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise InputError(f"the {name} {mask.shape} and the image {image.shape} differ in size; resize one first.")

    if width is not None and width < image.shape[1]:
        image = _fit(image, width)
        # Keeps every partly covered pixel, so that small findings stay visible in a thumbnail.
        masks = {name: (_fit(mask * 1.0, width) > 0).astype(np.uint8) for name, mask in masks.items()}

    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    line = 1 + round(min(image.shape) / 512)  # 3 pixels at 1024, 1 at 256
    smooth = cv2.LINE_AA if line > 1 else cv2.LINE_8  # OpenCV's smooth lines of 1 pixel are almost invisible
    for name, mask in masks.items():
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if name == "truth":  # dashed and on top, so both lines are visible where they overlap
            outlines = [dash for outline in outlines for dash in _dashes(outline, 10 * line)]
            cv2.polylines(picture, outlines, False, COLORS[name], line, smooth)
        else:
            cv2.drawContours(picture, outlines, -1, COLORS[name], line, smooth)
    return picture


def contact_sheet(
    pictures: list[tuple[str, np.ndarray]],
    columns: int = 4,
    width: int = 1600,
    outlines: Sequence[str] = ("prediction", "truth"),
) -> np.ndarray:
    """Arranges pictures with titles in rows on a dark sheet, with a legend of the colours below.

    Args:
      pictures: (title, uint8 (H, W, 3) RGB) pairs. Titles are ASCII. Pictures are resized to the cell;
        `overlay(..., width=about width / columns)` makes them about that wide.
      columns: number of pictures in a row.
      width: width of the sheet in pixels. The sheet is narrower if there are fewer pictures than columns.
      outlines: the kinds of outlines in the legend.

    Returns:
      uint8 (height, width, 3), RGB.

    Raises:
      InputError: there are no pictures, or the cells are too narrow.
    """
    if not pictures:
        raise InputError("a contact sheet needs at least one picture.")
    gap, title_height, foot = 12, 30, 36
    cell = (width - gap) // max(columns, 1) - gap
    if columns < 1 or cell < 32:
        raise InputError(
            f"{columns} columns in {width} pixels leave pictures no room; use fewer columns or a wider sheet."
        )

    tiles = [(title, _fit(picture, cell)) for title, picture in pictures]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [title_height + max(tile.shape[0] for _, tile in row) + gap for row in rows]
    used = gap + min(columns, len(pictures)) * (cell + gap)
    sheet = np.full((sum(heights) + foot, used, 3), 24, np.uint8)

    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (title, tile) in enumerate(row):
            left = gap + column * (cell + gap)
            _title(sheet, title, left, top + title_height - 9, cell)
            sheet[top + title_height : top + title_height + tile.shape[0], left : left + cell] = tile
        top += height
    _legend(sheet, outlines)
    return sheet


def _legend(picture: np.ndarray, names: Sequence[str]) -> None:
    """Draws a sample of each line with its name, and the disclaimer, on a darkened strip at the lower edge."""
    height, width = picture.shape[:2]
    natural = sum(_text_width(name, 1.0) + 90 for name in names) + _text_width(DISCLAIMER, 1.0) + 30
    scale = min(max(0.55 * width / 1024, SMALLEST_TEXT), 0.6, width / natural)
    unit = 30 * scale  # about the height of a line of text
    strip = picture[max(0, height - round(1.4 * unit)) :]
    strip[:] = strip * 0.25

    baseline, x = height - round(0.42 * unit), 0.5 * unit
    for name in names:
        middle, thickness = baseline - round(0.25 * unit), max(1, round(0.16 * unit))
        parts = [(0.0, 0.4), (0.9, 1.3)] if name == "truth" else [(0.0, 1.3)]
        for start, end in parts:
            points = (round(x + start * unit), middle), (round(x + end * unit), middle)
            cv2.line(picture, *points, COLORS[name], thickness, cv2.LINE_AA)
        _text(picture, name, round(x + 1.7 * unit), baseline, scale, WHITE)
        x += _text_width(name, scale) + 2.8 * unit
    left = round(width - 0.4 * unit) - _text_width(DISCLAIMER, scale)
    _text(picture, DISCLAIMER, left, baseline, scale, GREY)


def _dashes(outline: np.ndarray, period: int) -> list[np.ndarray]:
    """Cuts a closed outline (points, 1, 2) into dashes: three fifths of each period of `period` pixels."""
    closed = np.concatenate([outline, outline[:1]])
    periods = np.array_split(closed, max(1, len(outline) // period))
    return [points[: max(2, round(0.6 * len(points)))] for points in periods]


def _title(sheet: np.ndarray, title: str, left: int, baseline: int, room: int) -> None:
    """Writes a title. A long title is first made smaller, then shortened in the middle."""
    scale = min(0.55, max(SMALLEST_TEXT, 0.55 * room / max(1, _text_width(title, 0.55))))
    short, keep = title, len(title)
    while keep > 4 and _text_width(short, scale) > room:
        keep -= 2
        short = f"{title[: keep // 2]}..{title[len(title) - keep // 2 :]}"
    _text(sheet, short, left, baseline, scale, WHITE)


def _fit(picture: np.ndarray, width: int) -> np.ndarray:
    """Resizes a picture to this width."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _text(picture: np.ndarray, text: str, left: int, baseline: int, scale: float, color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, (left, baseline), FONT, scale, color, 1, cv2.LINE_AA)


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]

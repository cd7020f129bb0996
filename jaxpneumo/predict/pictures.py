"""Pictures for people: outlines over radiographs, and sheets of many."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError

# Okabe and Ito's orange and sky blue, RGB: told apart by every kind of colour vision, and seen on every grey
COLORS = {"prediction": (230, 159, 0), "truth": (86, 180, 233)}
WHITE, GREY = (255, 255, 255), (170, 170, 170)
DISCLAIMER = "not a medical device"
FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALLEST_TEXT = 0.35  # the font scale below which letters run together


def overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None = None,
    width: int | None = None,
    legend: bool = True,
    warning: str = "",
) -> np.ndarray:
    """Outlines the prediction (orange) and the truth (blue, dashed) on a radiograph.

    Args:
      image: uint8 (H, W), grey.
      prediction: (H, W) mask, 0 = background.
      truth: the same, or None where it is unknown.
      width: shrink to this width in pixels first, which leaves sharper lines than shrinking the result.
      legend: write what the colours mean, and that this is not a medical device, along the lower edge.
      warning: a sentence for the upper edge, ASCII.

    Returns:
      uint8 (H, W, 3), RGB; (round(H * width / W), width, 3) when shrunk.

    Raises:
      InputError: an image that is not uint8 (H, W), or a mask of another shape.
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
        # any share of a pixel counts: the smallest finding must not vanish from a thumbnail
        masks = {name: (_fit(mask * 1.0, width) > 0).astype(np.uint8) for name, mask in masks.items()}

    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    line = 1 + round(min(image.shape) / 512)  # 3 pixels at 1024, 1 at 256
    smooth = cv2.LINE_AA if line > 1 else cv2.LINE_8  # OpenCV makes smooth lines of 1 pixel all but invisible
    for name, mask in masks.items():
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if name == "truth":  # dashed and on top, so that both are seen where they run together
            outlines = [dash for outline in outlines for dash in _dashes(outline, 10 * line)]
            cv2.polylines(picture, outlines, False, COLORS[name], line, smooth)
        else:
            cv2.drawContours(picture, outlines, -1, COLORS[name], line, smooth)
    if legend:
        _legend(picture, list(masks))
    if warning:
        _warning(picture, warning)
    return picture


def contact_sheet(
    pictures: list[tuple[str, np.ndarray]],
    columns: int = 4,
    width: int = 1600,
    outlines: Sequence[str] = ("prediction", "truth"),
) -> np.ndarray:
    """Sets titled pictures in rows on a dark sheet, with the colours' legend below.

    Args:
      pictures: (title, uint8 (H, W, 3) RGB) pairs; best made by `overlay(..., width=about width / columns,
        legend=False)`. Larger or smaller ones are resized to the cell. Titles are ASCII.
      columns: pictures in a row.
      width: the sheet's width in pixels; less when there are fewer pictures than columns.
      outlines: the kinds that the legend explains.

    Returns:
      uint8 (height, width, 3), RGB.

    Raises:
      InputError: no pictures, or cells too narrow to see anything in.
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


def write_overlay(
    path: Path | str, image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None = None, warning: str = ""
) -> None:
    """Writes `overlay(image, prediction, truth)` with its warning as a PNG, atomically."""
    write_png(path, overlay(image, prediction, truth, warning=warning))


def write_png(path: Path | str, picture: np.ndarray) -> None:
    """Writes uint8 (H, W) grey or (H, W, 3) RGB as a PNG, atomically."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise InputError(f"{path}: an array of {picture.dtype} {picture.shape} cannot be written as a PNG.")
    with write_atomically(path, "wb") as file:
        file.write(data.tobytes())


def _legend(picture: np.ndarray, names: Sequence[str]) -> None:
    """A sample of each line with its name, and the disclaimer, on a darkened strip at the lower edge."""
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


def _warning(picture: np.ndarray, text: str) -> None:
    """A sentence on a darkened strip at the upper edge, as large as there is room for."""
    width = picture.shape[1]
    scale = min(max(0.55 * width / 1024, SMALLEST_TEXT), 0.94 * width / _text_width(text, 1.0))
    strip = picture[: max(1, round(42 * scale))]
    strip[:] = strip * 0.25
    _text(picture, text, round(0.03 * width), round(29 * scale), scale, COLORS["prediction"])


def _dashes(outline: np.ndarray, period: int) -> list[np.ndarray]:
    """Pieces of a closed outline (points, 1, 2), three fifths of each `period` of its pixels."""
    closed = np.concatenate([outline, outline[:1]])
    periods = np.array_split(closed, max(1, len(outline) // period))
    return [points[: max(2, round(0.6 * len(points)))] for points in periods]


def _title(sheet: np.ndarray, title: str, left: int, baseline: int, room: int) -> None:
    """A title made smaller, and then shortened in its middle, until it fits."""
    scale = min(0.55, max(SMALLEST_TEXT, 0.55 * room / max(1, _text_width(title, 0.55))))
    short, keep = title, len(title)
    while keep > 4 and _text_width(short, scale) > room:
        keep -= 2
        short = f"{title[: keep // 2]}..{title[len(title) - keep // 2 :]}"
    _text(sheet, short, left, baseline, scale, WHITE)


def _fit(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture at this width."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _text(picture: np.ndarray, text: str, left: int, baseline: int, scale: float, color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, (left, baseline), FONT, scale, color, 1, cv2.LINE_AA)


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]

"""The picture of a data set: histograms of mask areas and patients, and a contact sheet of images with masks."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxpneumo.data import dataset
from jaxpneumo.data.dataset import Index
from jaxpneumo.predict.pictures import contact_sheet, overlay

BLUE, ORANGE = "#0072B2", "#E69F00"  # of Okabe and Ito's palette, which suits all kinds of colour vision
WIDTH, COLUMNS, POSITIVES, NEGATIVES = 1600, 6, 9, 3


def data_picture(index: Index, threshold: int, directory: Path | None = None) -> np.ndarray:
    """Draws histograms and, below them, a contact sheet.

    Args:
      index: index of the data set or of its csv tables.
      threshold: removal threshold in pixels of a 1024x1024 image; marked in the histogram of areas.
      directory: the prepared data set with the images; None draws no contact sheet.

    Returns:
      uint8 (H, 1600, 3), RGB.

    Raises:
      InputError: the data set's arrays cannot be read.
    """
    parts = [_histograms(index, threshold)]
    if directory is not None:
        sheet = _sheet(index, directory)
        parts.append(cv2.copyMakeBorder(sheet, 0, 0, 0, WIDTH - sheet.shape[1], cv2.BORDER_CONSTANT, value=[24] * 3))
    return np.concatenate(parts)


def _histograms(index: Index, threshold: int) -> np.ndarray:
    figure = Figure(figsize=(WIDTH / 80, 5.5), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4, width_ratios=[1.3, 0.8, 1, 1.2])
    positive = index.positive
    area = index.mask_area[positive] * (1024**2 / (index.height * index.width)[positive])
    bins = np.geomspace(min(50, area.min(initial=50)), max(2e5, area.max(initial=0)), 41)
    panels[0].hist(area, bins, color=BLUE)
    panels[0].axvline(threshold, color="black", linestyle="--", linewidth=2)
    panels[0].set_xscale("log")
    panels[0].set_title(f"Mask area: {np.count_nonzero(area < threshold)} of {area.size} below {threshold:,}")
    panels[0].set_xlabel("pixels of 1024 x 1024")

    rows = np.bincount(index.label_rows[positive], minlength=2)[1:]
    panels[1].bar(np.arange(1, rows.size + 1), rows, color=BLUE)
    panels[1].set_title("Regions of a positive")
    panels[1].set_xlabel("label rows")
    panels[1].xaxis.get_major_locator().set_params(integer=True)

    panels[2].set_title("Sex and view")
    groups = [(kind, value) for kind in ("sex", "view") for value in sorted(set(getattr(index, kind).tolist()))]
    places = np.arange(len(groups))
    for mine, color, label in ((~positive, ORANGE, "negative"), (positive, BLUE, "positive")):
        counts = [int(((getattr(index, kind) == value) & mine).sum()) for kind, value in groups]
        panels[2].bar(places + (0.2 if label == "positive" else -0.2), counts, 0.4, color=color, label=label)
    panels[2].set_xticks(places, [value or f"{kind}\nunknown" for kind, value in groups])
    panels[2].margins(y=0.2)  # room for the legend
    panels[2].legend(frameon=False, fontsize=14, ncols=2, loc="upper center")

    ages = [index.age[mine & ~np.isnan(index.age)] for mine in (~positive, positive)]
    panels[3].hist(ages, np.arange(0, 105, 5), stacked=True, color=[ORANGE, BLUE])
    panels[3].set_title("Age")
    panels[3].set_xlabel("years")
    for panel in panels:
        _style(panel)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _style(panel: Any) -> None:
    panel.title.set_fontsize(17)
    panel.xaxis.label.set_fontsize(15)
    panel.tick_params(labelsize=13)
    panel.set_ylabel("images", fontsize=15)
    panel.grid(axis="y", color="0.88")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _sheet(index: Index, directory: Path) -> np.ndarray:
    """Draws a contact sheet: positives from the smallest to the largest mask, then negatives, both evenly spaced."""
    sizes = dataset.read_info(directory)["sizes"]
    images, masks = dataset.open_arrays(directory, max([size for size in sizes if size <= 512], default=sizes[0]))
    positive = np.flatnonzero(index.positive)
    by_area = positive[np.argsort(index.mask_area[positive], kind="stable")]
    rows = [*_spread(by_area, POSITIVES), *_spread(np.flatnonzero(~index.positive), NEGATIVES)]
    pictures = []
    for row in rows:
        mask = np.unpackbits(masks[row], axis=-1)
        words = [f"row {row}", index.view[row], f"{index.mask_area[row]:,} px" if index.positive[row] else "negative"]
        picture = overlay(images[row], np.zeros_like(mask), mask, width=WIDTH // COLUMNS)
        pictures.append((", ".join(filter(None, words)), picture))
    return contact_sheet(pictures, COLUMNS, WIDTH, ["truth"])


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Selects at most `count` rows, evenly spaced from the first to the last."""
    if not rows.size:
        return []
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))].tolist()

"""The figures of the report. Each figure is drawn for a light and for a dark page."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette, which suits all kinds of colour vision
ORANGE, SKY, GREEN, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#CC79A7"
BLUE, VERMILION = "#0072B2", "#D55E00"
DPI = 150


@dataclass(frozen=True)
class Theme:
    """Colours of a page: text and lines (ink), secondary elements (muted), grid, background (ground), two curves."""

    ink: str
    muted: str
    grid: str
    ground: str
    first: str
    second: str


LIGHT = Theme("#1c2733", "#55616e", "#e3e7eb", "#ffffff", BLUE, VERMILION)
DARK = Theme("#e8edf2", "#a9b4bf", "#36414d", "#18212b", SKY, ORANGE)

Draw = Callable[[Figure, Theme], None]


def png(draw: Draw, size: tuple[float, float], theme: Theme) -> bytes:
    """Draws a figure with this size in inches and returns it as the bytes of a PNG file."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=theme.ground)
    canvas = FigureCanvasAgg(figure)
    draw(figure, theme)
    for axes in figure.axes:
        _dress(axes, theme)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})  # figure.savefig would draw twice
    return buffer.getvalue()


def training(stages: dict[str, list[dict[str, Any]]]) -> tuple[Draw, tuple[float, float]]:
    """Plots loss, validation Dice and IoU, and learning rate of each stage over the epochs.

    Args:
      stages: name -> records of log.jsonl at the end of each epoch.

    Returns:
      The function that draws the figure, and the size of the figure in inches.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(len(stages), 3, squeeze=False)
        for (stage, records), row in zip(stages.items(), panels, strict=True):
            epochs = [record["epoch"] + 1 for record in records]

            def curve(axes: Any, key: str, label: str, color: str, line: str, records=records, epochs=epochs) -> None:
                values = [math.nan if record.get(key) is None else record[key] for record in records]
                marker = ("o" if line == "-" else "s") if len(records) <= 40 else ""
                axes.plot(epochs, values, line, color=color, label=label, marker=marker, markersize=3.5, linewidth=1.6)

            curve(row[0], "train_loss", "training", theme.first, "-")
            curve(row[0], "validation_loss", "validation", theme.second, "--")
            curve(row[1], "validation_iou", "IoU", theme.first, "-")
            curve(row[1], "validation_dice", "Dice", theme.second, "--")
            curve(row[2], "learning_rate", "learning rate", theme.first, "-")
            _limit(row[0], theme)
            row[1].set_ylim(0, 1)
            row[2].set_ylim(bottom=0)
            row[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
            row[2].yaxis.get_offset_text().set(color=theme.ink, fontsize=8)
            for axes, title in zip(row, ("loss", "validation score", "learning rate"), strict=True):
                axes.set_title(f"{stage}: {title}")
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            for axes in row[:2]:
                _legend(axes, theme)

    return draw, (9.6, 2.7 * len(stages))


def threshold_surfaces(found: dict[str, Any], own: dict[str, Any] | None) -> tuple[Draw, tuple[float, float]]:
    """Plots the mean score over probability and removal thresholds, for both removal rules.

    Args:
      found: content of thresholds.json.
      own: the evaluation's settings, {"threshold", "removal_threshold", "removal_rule"}; None for those of a triplet.

    Returns:
      The function that draws the figure, and the size of the figure in inches.
    """
    levels, areas = np.array(found["levels"]), np.array(found["areas"])
    surfaces = {rule: np.array(values) for rule, values in found["surfaces"].items()}
    of = "best on one half" if found["method"] == "half" else "best on all images"

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, len(surfaces), squeeze=False, sharey=True)[0]
        low = min(values.min() for values in surfaces.values())
        high = max(max(values.max() for values in surfaces.values()), low + 1e-6)
        for axes, (rule, values) in zip(panels, surfaces.items(), strict=True):
            mesh = axes.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high)
            chosen = found["rules"][rule]["thresholds"]
            marks = [(chosen["threshold"], chosen["removal_threshold"], "*", 15, of)]
            if own and own["removal_rule"] == rule:
                marks.append((own["threshold"], own["removal_threshold"], "s", 8, "this run's"))
            for level, area, marker, size, label in marks:
                place = (_place(area, areas), _place(level, levels))
                axes.plot(*place, marker, ms=size, mfc="white", mec="black", mew=1.2, label=label, ls="", clip_on=False)
            axes.set_title(f"removal by {rule}")
            axes.set_xlabel("removal threshold R-TH, px of 1024x1024")
            every = range(0, len(areas), max(1, len(areas) // 7))
            axes.set_xticks(list(every), [f"{areas[i]:,}" for i in every])
            every = range(0, len(levels), max(1, len(levels) // 8))
            axes.set_yticks(list(every), [f"{levels[i]:g}" for i in every])
            legend = axes.legend(fontsize=8, loc="upper right", labelcolor="black")
            legend.get_frame().set(facecolor="white", alpha=0.85, edgecolor="none")
        panels[0].set_ylabel("probability threshold B-TH")
        bar = figure.colorbar(mesh, ax=list(panels), shrink=0.95)
        bar.set_label(f"mean {'Dice' if found['score'] == 'dice' else 'IoU'}", color=theme.ink)
        bar.outline.set_visible(False)

    return draw, (9.6, 3.9)


def reliability(calibration: dict[str, Any]) -> tuple[Draw, tuple[float, float]]:
    """Plots the share of positive images over the score, before and after temperature scaling, and images per bin.

    Args:
      calibration: calibration of one image-level score, see `calibration.calibration`.

    Returns:
      The function that draws the figure, and the size of the figure in inches.
    """
    kinds = {"as predicted": calibration["reliability"], "after temperature": calibration["after_temperature"]}
    kinds["after temperature"] = kinds["after temperature"]["reliability"]

    def draw(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
        top.plot([0, 1], [0, 1], ":", color=theme.muted, linewidth=1.2, label="perfectly calibrated")
        styles = ((theme.first, "o", "-"), (theme.second, "s", "--"))
        for n, ((label, bins), (color, marker, line)) in enumerate(zip(kinds.items(), styles, strict=True)):
            filled = [one for one in bins if one["n_images"]]
            x, y = ([one[key] for one in filled] for key in ("mean_score", "positive_share"))
            top.plot(x, y, line, color=color, marker=marker, markersize=5, linewidth=1.4, label=label)
            width = (bins[0]["high"] - bins[0]["low"]) * 0.4
            left = [one["low"] + 0.1 * width + n * 1.2 * width for one in bins]
            bottom.bar(left, [one["n_images"] for one in bins], width, align="edge", color=color)
        top.set(ylim=(-0.03, 1.03), xlim=(0, 1), ylabel="share with pneumothorax", title="Reliability")
        bottom.set(xlabel="image-level score", ylabel="images")
        bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        _legend(top, theme, "upper left")

    return draw, (5.2, 4.8)


def strata(groups: list[dict[str, Any]], overall: dict[str, Any]) -> tuple[Draw, tuple[float, float]]:
    """Plots the Dice of each group with its interval, for all images and for the positives of the group.

    Args:
      groups: `strata` of summary.json.
      overall: {"dice", "dice_positive"} of all images.

    Returns:
      The function that draws the figure, and the size of the figure in inches.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        rows = [(f"{one['stratum']}: {one['group']}", one) for one in groups]
        places = np.arange(len(rows))[::-1]
        titles = {"dice": "Dice, all images of the group", "dice_positive": "Dice, its positive images"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            if overall[key] is not None:
                axes.axvline(overall[key], color=theme.muted, linestyle=":", linewidth=1.2)
            for place, (_, one) in zip(places, rows, strict=True):
                value, ends = one["scores"][key], one["intervals"][key]
                if value is None:
                    continue
                if ends:
                    axes.plot(ends, [place, place], color=theme.first, linewidth=2, solid_capstyle="butt")
                axes.plot([value], [place], "o", color=theme.first, markersize=5)
            axes.set(xlim=(-0.02, 1.02), title=title, ylim=(-0.7, len(rows) - 0.3))
            axes.set_xlabel("dotted: all images together")
        panels[0].set_yticks(places, [label for label, _ in rows])

    return draw, (9.6, 1.2 + 0.27 * len(groups))


def dice_by_size(truth_area: np.ndarray, dice: np.ndarray, removal: int) -> tuple[Draw, tuple[float, float]]:
    """Plots the Dice of every positive image over the size of its finding.

    Args:
      truth_area: (N,), areas in pixels of a 1024x1024 image, all above 0.
      dice: (N,).
      removal: the run's removal threshold in pixels of a 1024x1024 image; 0 draws no line.

    Returns:
      The function that draws the figure, and the size of the figure in inches.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.scatter(truth_area, dice, s=16, color=theme.first, alpha=0.75, linewidths=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if removal:
            axes.axvline(removal, color=theme.second, linestyle="--", linewidth=1.2, label=f"R-TH {removal:,} px")
            _legend(axes, theme, "upper left")
        axes.set(
            ylim=(-0.03, 1.03),
            xlabel="size of the finding, px of 1024x1024",
            ylabel="Dice",
            title="Every image with pneumothorax",
        )

    return draw, (5.2, 4.8)


def _place(value: float, grid: np.ndarray) -> float:
    """The position of a value on the axis of a grid, interpolated between its cells."""
    return float(np.interp(value, grid, np.arange(len(grid))))


def _limit(axes: Any, theme: Theme) -> None:
    """Limits the y axis, so that single very large losses do not flatten the curves. Labels mark the hidden values."""
    lines = [np.array(line.get_xydata()) for line in axes.lines]
    points = np.concatenate(lines) if lines else np.empty((0, 2))
    points = points[np.isfinite(points[:, 1])]
    if not len(points):
        return
    top = points[points[:, 1] <= 4 * np.median(points[:, 1]), 1].max()
    axes.set_ylim(0, 1.12 * top or 1)
    for x, y in points[points[:, 1] > 1.12 * top]:
        axes.annotate(
            f"{y:.3g} ↑", (x, 1.1 * top), fontsize=8, color=theme.muted, ha="left", va="top", annotation_clip=False
        )


def _legend(axes: Any, theme: Theme, place: str = "best") -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=theme.ink, loc=place)


def _dress(axes: Any, theme: Theme) -> None:
    """Applies the colours of the theme to the axes, which matplotlib draws in black."""
    axes.set_facecolor(theme.ground)
    axes.tick_params(labelsize=8, colors=theme.muted, labelcolor=theme.ink)
    axes.title.set(color=theme.ink, fontsize=10, fontweight="bold")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.ink, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and not axes.images and axes.get_label() != "<colorbar>")
        spine.set_color(theme.muted)
    if not axes.images and axes.get_label() != "<colorbar>":
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)

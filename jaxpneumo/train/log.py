"""The log of a training run: log.jsonl, TensorBoard scalars and progress.png."""

import json
import math
import time
from pathlib import Path
from typing import Any

from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError

Record = dict[str, Any]

DRAW_SECONDS = 30.0  # from one picture to the next, at least

# Okabe and Ito's colours, told apart by every kind of colour vision
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


class MetricsLog:
    """The log of one training stage, in `directory`:

    log.jsonl            one JSON object a record, written to the file before `write` returns
    tensorboard/         the same numbers as scalars
    progress.png         the curves so far, drawn after an epoch at most every 30 s, and at the end

    A resumed run repeats the epochs from `start_epoch` on. Their old records are removed from log.jsonl and from the
    curves, and TensorBoard hides them.

    Every record has "epoch". One that has "validation_loss" too closes its epoch and is drawn (see
    `progress_picture`). A scalar's TensorBoard step is the record's "step" where it has one, else its
    "epoch": a run gives "step" in all its records or in none.
    """

    def __init__(self, directory: Path | str, start_epoch: int):
        """Opens the log. An older one keeps the epochs before `start_epoch`.

        Raises:
          InputError: an older log.jsonl is damaged before its last line.
        """
        self.directory = Path(directory)
        path = self.directory / "log.jsonl"
        old = read_log(path) if path.exists() else []
        kept = [record for record in old if record["epoch"] < start_epoch]
        with write_atomically(path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)

        self._epochs = [record for record in kept if "validation_loss" in record]
        self._purge_step = max(map(_tensorboard_step, kept), default=-1) + 1 if old else None
        self._tensorboard = None
        self._draw_at, self._undrawn = 0.0, False
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (close() closes it)

    def write(self, record: Record) -> None:
        """Appends one record: strings and numbers (Python, NumPy or JAX scalars; nan and inf become null)."""
        record = {key: _plain(value) for key, value in record.items()}
        step = _tensorboard_step(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

        writer = self._summary_writer()
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "step"):
                writer.add_scalar(name, value, step)

        if "validation_loss" in record:
            self._epochs.append(record)
            self._undrawn = True
            if time.monotonic() >= self._draw_at:
                self._draw()

    def _draw(self) -> None:
        progress_picture(self.directory / "progress.png", self._epochs)
        self._draw_at, self._undrawn = time.monotonic() + DRAW_SECONDS, False

    def close(self) -> None:
        """Draws the last epochs and writes out what TensorBoard's writer still holds. A second call does nothing."""
        self._file.close()
        if self._undrawn:
            self._draw()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _summary_writer(self) -> Any:
        if self._tensorboard is None:
            from tensorboardX import SummaryWriter  # here: half a second that no other verb should pay

            self._tensorboard = SummaryWriter(
                str(self.directory / "tensorboard"),
                purge_step=self._purge_step,
                flush_secs=10,
                # its own name has whole seconds: a run started twice in one would overwrite itself
                filename_suffix=f".{time.time_ns()}",
            )
        return self._tensorboard


def read_log(path: Path | str) -> list[Record]:
    """Reads a log.jsonl. A torn last line, which a killed process leaves, is left out.

    Raises:
      InputError: the file cannot be read, or a line before the last is not a record.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = json.loads(line)
            record["epoch"] = int(record["epoch"])
        except (ValueError, TypeError, KeyError) as error:
            if number == lines[-1][0]:
                break
            raise InputError(f"{path}, line {number} is damaged; remove that line, or the file.") from error
        records.append(record)
    return records


def progress_picture(path: Path | str, records: list[Record]) -> None:
    """Draws a run's curves over its epochs as a PNG, atomically: losses, validation IoU, learning rate.

    Args:
      path: the PNG file.
      records: one a finished epoch, with the keys epoch, train_loss, validation_loss, validation_iou,
        learning_rate, images_per_second. A value that is absent or None leaves a gap.
    """
    # here and not at the top: matplotlib takes a second to import, and only training draws
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(15, 5), dpi=80)
    canvas = FigureCanvasAgg(figure)
    # Fixed places, with room for labels as long as 0.734915: computing them takes longer than drawing.
    places = {"left": 0.065, "right": 0.985, "bottom": 0.19, "top": 0.89, "wspace": 0.3}
    panels = figure.subplots(1, 3, gridspec_kw=places)

    def draw(panel: Any, key: str, color: str, label: str, marker: str, line: str = "-") -> list[float]:
        values = [math.nan if record.get(key) is None else record[key] for record in records]
        marker = marker if len(records) <= 40 else ""
        panel.plot(epochs, values, line, color=color, label=label, marker=marker, markersize=7, linewidth=3)
        return [value for value in values if math.isfinite(value)]

    losses = draw(panels[0], "train_loss", BLUE, "training", "o")
    losses += draw(panels[0], "validation_loss", ORANGE, "validation", "s", "--")
    ious = draw(panels[1], "validation_iou", GREEN, "validation", "o")
    rates = draw(panels[2], "learning_rate", PURPLE, "learning rate", "o")

    title = {"fontsize": 22, "y": 1.06, "pad": 0}  # above what an axis may write over its end, as 1e7
    panels[0].set_title("Loss", **title)
    panels[0].legend(fontsize=17, frameon=False)
    panels[1].set_title(f"Validation IoU, best {max(ious):.4f}" if ious else "Validation IoU", **title)
    panels[2].set_title("Learning rate", **title)
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    panels[2].yaxis.get_offset_text().set_fontsize(15)
    for panel, values in ((panels[0], losses), (panels[2], rates)):
        panel.set_ylim(0, 1.1 * max(values, default=1) or 1)
    for panel in panels:
        panel.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=0) + 0.5)
        panel.set_xlabel("epoch", fontsize=18)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        panel.tick_params(labelsize=15)
        panel.grid(color="0.88")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)

    speeds = [record["images_per_second"] for record in records if record.get("images_per_second")]
    if speeds:
        figure.supxlabel(f"last epoch: {speeds[-1]:.1f} images/s", fontsize=15, color="0.35", x=0.985, ha="right")
    with write_atomically(path, "wb") as file:
        canvas.print_png(file)  # figure.savefig would draw twice


def _tensorboard_step(record: Record) -> int:
    return record.get("step", record["epoch"])


def _plain(value: Any) -> Any:
    """A value for JSON: NumPy and JAX scalars become Python numbers, nan and inf become None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

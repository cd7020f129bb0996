"""The report's gallery: which images it shows, each with its pixels, its outlines and its words."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from jaxpneumo.data import dataset, rle
from jaxpneumo.evaluate.results import read_metrics, rows_of
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import InputError

LARGEST = 512  # pixels of an embedded picture's side
QUALITY = 88  # of its JPEG
PATH_ERROR = 0.0008  # of the image's larger side: how far a drawn outline may lie from the mask's own
FILTERS = {
    "all": "All",
    "positive": "Positives",
    "miss": "Misses",
    "false-alarm": "False alarms",
}


@dataclass(frozen=True)
class Entry:
    """One image of the gallery.

    Attributes:
      image_id, row: name and row in the prepared data set.
      picture: the prepared array's pixels as a JPEG data URI; square, to be shown at width : height.
      width, height: native size, the outlines' coordinates.
      truth, prediction: outlines as SVG path data, "" for an empty mask.
      truth_area, predicted_area: native pixels.
      dice: of the run's own mode.
      score: image-level score, mean of the top probabilities; None where the evaluation has none.
      view: projection, "" unknown.
      kinds: names of FILTERS that show it.
      outcome: in words.
    """

    image_id: str
    row: int
    picture: str
    width: int
    height: int
    truth: str
    prediction: str
    truth_area: int
    predicted_area: int
    dice: float
    score: float | None
    view: str
    kinds: tuple[str, ...]
    outcome: str

    @property
    def words(self) -> str:
        """For the picture's alternative text."""
        truth = f"pneumothorax of {self.truth_area:,} pixels" if self.truth_area else "no pneumothorax labelled"
        found = f"{self.predicted_area:,} pixels predicted" if self.predicted_area else "nothing predicted"
        return f"Chest radiograph {self.image_id}: {truth}, {found}, Dice {self.dice:.3f}"


@dataclass(frozen=True)
class Gallery:
    """The entries shown, from the best Dice to the worst, of `total` images; counts of all by filter."""

    entries: tuple[Entry, ...]
    total: int
    counts: dict[str, int]

    def shown(self, kind: str) -> int:
        """How many of the entries a filter shows."""
        return sum(kind in entry.kinds for entry in self.entries)


def make_gallery(workdir: Path, data: Path, size: int, mode: str, most: int) -> Gallery:
    """The gallery of a run's evaluation.

    Args:
      workdir: an evaluated run.
      data: the prepared data set that it was evaluated on.
      size: of the arrays that the pictures are made of.
      mode: whose masks evaluation/submission.csv holds, the run's own.
      most: images to show; of more, evenly spaced ones from the best to the worst.

    Raises:
      InputError: the files of the evaluation do not belong together or to the data.
    """
    folder = workdir / "evaluation"
    metrics = read_metrics(folder / "metrics.csv")
    codes = read_submission(folder / "submission.csv")
    image_ids = metrics["ImageId"]
    if set(image_ids.tolist()) != codes.keys():
        raise InputError(
            f"{folder}: metrics.csv and submission.csv are of different images. Run "
            f"`jaxpneumo evaluate --workdir {workdir}` again."
        )
    index, labels = dataset.read_index(data), dataset.read_labels(data)
    rows = rows_of(index, image_ids, workdir)
    images, _ = dataset.open_arrays(data, size)
    dices = metrics[f"{mode}_dice"].astype(float)
    truth_area, area, tp = (metrics[name].astype(np.int64) for name in ("truth_area", f"{mode}_area", f"{mode}_tp"))
    scores = metrics.get(f"{'tta' if mode.startswith('tta') else 'plain'}_top_mean")

    # Best first; of equal ones those with more to see.
    order = np.lexsort((image_ids, -(truth_area + area), -dices))
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
    kinds = [_kinds(*one) for one in zip(truth_area, area, tp, strict=True)]

    def entry(n: int) -> Entry:
        row, image_id = int(rows[n]), str(image_ids[n])
        height, width = int(index.height[row]), int(index.width[row])
        truth, prediction = (rle.decode(code, height, width) for code in (labels[image_id], codes[image_id]))
        if int(truth.sum()) != truth_area[n] or int(prediction.sum()) != area[n]:
            raise InputError(
                f"{folder}/metrics.csv does not fit the masks of {image_id}: labels or predictions have changed "
                f"since. Run `jaxpneumo evaluate --workdir {workdir}` again."
            )
        return Entry(
            image_id=image_id,
            row=row,
            picture=data_uri(np.asarray(images[row])),
            width=width,
            height=height,
            truth=outline_path(truth),
            prediction=outline_path(prediction),
            truth_area=int(truth_area[n]),
            predicted_area=int(area[n]),
            dice=float(dices[n]),
            score=None if scores is None else float(scores[n]),
            view=str(index.view[row]),
            kinds=kinds[n],
            outcome=_outcome(int(truth_area[n]), int(area[n]), int(tp[n])),
        )

    counts = {name: sum(name in kind for kind in kinds) for name in FILTERS}
    return Gallery(tuple(entry(n) for n in shown), len(rows), counts)


def data_uri(image: np.ndarray) -> str:
    """uint8 (S, S) as a JPEG in a data URI, shrunk to LARGEST."""
    if max(image.shape) > LARGEST:
        image = cv2.resize(image, (LARGEST, LARGEST), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def outline_path(mask: np.ndarray) -> str:
    """Outlines of a mask (H, W) uint8 as SVG path data in its pixels; holes by the even-odd rule; "" when empty."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, PATH_ERROR * max(mask.shape), closed=True)[:, 0]
        # OpenCV counts from pixel centres, SVG from their corners.
        parts.append("M" + "L".join(f"{x}.5 {y}.5" for x, y in points.tolist()) + "Z")
    return "".join(parts)


def _kinds(truth_area: int, area: int, tp: int) -> tuple[str, ...]:
    kinds = ["all"]
    if truth_area:
        kinds.append("positive")
    if truth_area and not tp:
        kinds.append("miss")
    if area and not truth_area:
        kinds.append("false-alarm")
    return tuple(kinds)


def _outcome(truth_area: int, area: int, tp: int) -> str:
    if not truth_area:
        return "false alarm" if area else "correctly empty"
    if not area:
        return "missed"
    return "found" if tp else "missed; outlined elsewhere"

"""The gallery of the report: selects images and makes their pictures, outlines and descriptions."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from jaxpneumo.data import dataset, rle
from jaxpneumo.evaluate.results import read_metrics, rows_of
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import InputError

LARGEST = 512  # largest side of an embedded picture in pixels
QUALITY = 88  # JPEG quality of the pictures
PATH_ERROR = 0.0008  # largest distance between drawn and exact outline, as a share of the image's larger side
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
      image_id, row: id and row in the prepared data set.
      picture: pixels of the prepared array as a JPEG data URI. It is square; the page shows it at width : height.
      width, height: native size in pixels, the coordinates of the outlines.
      truth, prediction: outlines as SVG path data, "" for an empty mask.
      truth_area, predicted_area: areas in native pixels.
      dice: Dice in the run's own mode.
      score: image-level score, the one that predictions have; None if the evaluation has no such score.
      view: projection, "" if unknown.
      kinds: names of the FILTERS that show the image.
      outcome: short description of the result, such as "missed".
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
        """The alternative text of the picture."""
        truth = f"pneumothorax of {self.truth_area:,} pixels" if self.truth_area else "no pneumothorax labelled"
        found = f"{self.predicted_area:,} pixels predicted" if self.predicted_area else "nothing predicted"
        return f"Chest radiograph {self.image_id}: {truth}, {found}, Dice {self.dice:.3f}"


@dataclass(frozen=True)
class Gallery:
    """The images of the gallery.

    Attributes:
      entries: the images that are shown, from the best to the worst Dice.
      total: number of evaluated images.
      counts: number of evaluated images by filter.
    """

    entries: tuple[Entry, ...]
    total: int
    counts: dict[str, int]

    def shown(self, kind: str) -> int:
        """The number of entries that a filter shows."""
        return sum(kind in entry.kinds for entry in self.entries)


def make_gallery(workdir: Path, data: Path, size: int, mode: str, score: str, most: int) -> Gallery:
    """Makes the gallery of a run's evaluation.

    Args:
      workdir: folder of an evaluated run.
      data: the prepared data set of the evaluation.
      size: side of the prepared arrays for the pictures.
      mode: the run's own mode, which is the mode of the masks in evaluation/submission.csv.
      score: the column of evaluation/metrics.csv with the image-level score.
      most: largest number of images. If there are more, the gallery shows evenly spaced ones from the best to the
        worst Dice.

    Raises:
      InputError: the files of the evaluation do not match each other or the data.
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
    scores = metrics.get(score)

    # Best Dice first. For equal Dice, larger masks first.
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
    """Encodes uint8 (S, S) as a JPEG data URI. Images larger than LARGEST are shrunk."""
    if max(image.shape) > LARGEST:
        image = cv2.resize(image, (LARGEST, LARGEST), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def outline_path(mask: np.ndarray) -> str:
    """Outlines of a mask, uint8 (H, W), as SVG path data in pixels; "" if empty. Holes need the even-odd fill rule."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, PATH_ERROR * max(mask.shape), closed=True)[:, 0]
        # The origin of OpenCV's coordinates is the centre of the first pixel, that of SVG its corner.
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

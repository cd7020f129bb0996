"""`jaxpneumo evaluate`: a finished run's scores at native size, the papers' 2x2 of TTA and removal threshold.

Everything comes from counts (tp, fp, fn) an image, against the label file's own masks at native size, and every
score stands beside that of predicting nothing at all.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxpneumo.data import dataset, rle
from jaxpneumo.data.splits import split_rows
from jaxpneumo.errors import DONE, InputError
from jaxpneumo.evaluate import metrics
from jaxpneumo.files import write_atomically, write_json
from jaxpneumo.predict.infer import Predictor, load_predictor, predict_masks
from jaxpneumo.predict.pictures import contact_sheet, overlay, write_png
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import write_submission
from jaxpneumo.progress import progress

# name -> (flip TTA, removal threshold): rows of the papers' tables
MODES = {"plain": (0, False), "tta": (1, False), "removal": (0, True), "tta_removal": (1, True)}
GALLERY = 12
NOTE = "Research software, not a medical device."

HELP = """\
Scores a finished run on held-out images at their native size: Dice and IoU an image, with and without flip
TTA and removal threshold, beside the all-empty baseline. Not a medical device.

It writes to WORKDIR/evaluation (or --output)
  summary.json     all scores with data, split, resolution and thresholds
  metrics.csv      areas, Dice and IoU of every image
  submission.csv   ImageId,EncodedPixels with the run's own settings
  gallery.png      images with prediction and truth, from the best to the worst

examples:
  jaxpneumo evaluate --workdir runs/exp5
  jaxpneumo evaluate --workdir runs/exp5 --data data/other-hospital --part all --output other-hospital
"""


def evaluate(
    predictor: Predictor,
    data: Path,
    rows: np.ndarray,
    split: dict[str, Any],
    output: Path,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores the given rows of a prepared data set and writes the files of HELP.

    Args:
      predictor: of `load_predictor`.
      data: the prepared data set.
      rows: which images.
      split: says in words what these images are.
      output: folder to write to.
      quiet: no progress bar.

    Returns:
      The content of summary.json.

    Raises:
      InputError: no images, or the data set lacks the config's predict.size.
    """
    settings = predictor.config.predict
    info, index, labels = dataset.read_info(data), dataset.read_index(data), dataset.read_labels(data)
    images, _ = dataset.open_arrays(data, settings.size)
    if len(rows) == 0:
        raise InputError("there are no images to evaluate; check --part and the split.")
    records: dict[int, dict[str, Any]] = {}
    codes: dict[str, str] = {}
    mode_of_run = ("tta" if settings.tta else "plain") if settings.removal_threshold == 0 else (
        "tta_removal" if settings.tta else "removal"
    )  # fmt: skip

    def stream() -> Iterator[tuple[int, np.ndarray, tuple[int, int]]]:
        for row in rows:
            yield int(row), images[row], (int(index.height[row]), int(index.width[row]))

    bar = progress(predict_masks(predictor, stream(), (0, 1)), len(rows), description="evaluate", quiet=quiet)
    for row, masks in bar:
        image_id = str(index.image_id[row])
        truth = rle.decode(labels[image_id], int(index.height[row]), int(index.width[row]))
        record = {"row": row, "ImageId": image_id, "truth_area": int(truth.sum())}
        for mode, (view, removal) in MODES.items():
            threshold = settings.removal_threshold if removal else 0
            mask = remove_small(masks[view], threshold, settings.removal_rule)
            record[mode] = tuple(int(n) for n in metrics.counts(mask, truth))
            if mode == mode_of_run:
                codes[image_id] = rle.encode(mask)
        records[row] = record

    ordered = [records[int(row)] for row in rows]
    scores = {mode: metrics.summarise(*np.transpose([r[mode] for r in ordered])) for mode in MODES}
    all_empty = metrics.all_empty(np.array([r["truth_area"] for r in ordered]))
    natives = sorted({f"{h}x{w}" for h, w in zip(index.height[rows], index.width[rows], strict=True)})
    summary = {
        "note": NOTE,
        "data": {
            "directory": data.name,
            "synthetic": info["synthetic"],
            "images": info["counts"]["images"],
            "positive": info["counts"]["positive"],
        },
        "split": split,
        "run": {"workdir": predictor.workdir.name, "stage": predictor.stage},
        "input_size": settings.size,
        "scored_at": natives,
        "threshold": settings.threshold,
        "removal": {"threshold": settings.removal_threshold, "rule": settings.removal_rule},
        "n_images": all_empty["n_images"],
        "n_positive": all_empty["n_positive"],
        "all_empty": all_empty,
        "scores": scores,
    }
    _write_metrics(output / "metrics.csv", ordered)
    write_submission(output / "submission.csv", sorted(codes.items()))
    _write_gallery(output / "gallery.png", ordered, mode_of_run, codes, labels, images, index)
    write_json(output / "summary.json", summary)
    return summary


def table(summary: dict[str, Any]) -> str:
    """summary.json as text: the 2x2 beside the all-empty baseline."""
    kind = "SYNTHETIC" if summary["data"]["synthetic"] else "real"
    lines = [
        f"{summary['n_images']} images ({summary['n_positive']} positive), {kind} data "
        f"{summary['data']['directory']}, split {summary['split']['method']}, {summary['split']['part']} part; "
        f"predicted at {summary['input_size']}, scored at {', '.join(summary['scored_at'])}; "
        f"probability threshold {summary['threshold']}, "
        f"removal threshold {summary['removal']['threshold']} px ({summary['removal']['rule']})",
        f"{'':>14} {'Dice':>7} {'IoU':>7} {'Dice positives':>15} {'Dice negatives':>15}",
    ]
    names = {"plain": "plain", "tta": "TTA", "removal": "removal", "tta_removal": "TTA + removal"}
    rows = [(names[mode], scores) for mode, scores in summary["scores"].items()]
    for name, scores in [*rows, ("all empty", summary["all_empty"])]:
        values = [scores[key] for key in ("dice", "iou", "dice_positive", "dice_negative")]
        texts = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"{name:>14} {texts[0]:>7} {texts[1]:>7} {texts[2]:>15} {texts[3]:>15}")
    return "\n".join([*lines, NOTE])


def evaluate_run(predictor: Predictor, quiet: bool = False) -> dict[str, Any]:
    """Scores a run on the validation images of its own split, into its own folder."""
    data = Path(predictor.config.data.directory)
    rows, split = _part(predictor.workdir, data, "validation")
    return evaluate(predictor, data, rows, split, predictor.workdir / "evaluation", quiet)


def _part(workdir: Path, data: Path, part: str) -> tuple[np.ndarray, dict[str, Any]]:
    index = dataset.read_index(data)
    if part == "all":
        return np.arange(len(index)), {"method": "none", "part": "whole"}
    train, validation, split = split_rows(index, str(workdir / "splits.json"), 0.0, 0)
    return (train if part == "train" else validation), {"part": part, **split}


def _write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        per_mode = [f"{mode}_{name}" for mode in MODES for name in ("area", "dice", "iou")]
        writer.writerow(["row", "ImageId", "truth_area", *per_mode])
        for record in records:
            line = [record["row"], record["ImageId"], record["truth_area"]]
            for mode in MODES:
                tp, fp, fn = (np.array(n) for n in record[mode])
                line += [tp + fp, f"{metrics.dice(tp, fp, fn):.6f}", f"{metrics.iou(tp, fp, fn):.6f}"]
            writer.writerow(line)


def _write_gallery(
    path: Path,
    records: list[dict[str, Any]],
    mode: str,
    codes: dict[str, str],
    labels: dict[str, str],
    images: np.ndarray,
    index: dataset.Index,
) -> None:
    """Pictures evenly spaced from the best to the worst Dice, of images with a truth or a prediction."""
    scored = [(float(metrics.dice(*(np.array(n) for n in r[mode]))), r) for r in records]
    not_plain = [pair for pair in scored if pair[1]["truth_area"] or codes[pair[1]["ImageId"]] != rle.EMPTY]
    shown = sorted(not_plain or scored, key=lambda pair: -pair[0])
    places = np.unique(np.linspace(0, len(shown) - 1, GALLERY).round().astype(int))
    pictures = []
    for score, record in (shown[i] for i in places):
        row, image_id = record["row"], record["ImageId"]
        native = (int(index.height[row]), int(index.width[row]))
        image = cv2.resize(np.asarray(images[row]), native[::-1], interpolation=cv2.INTER_LINEAR)
        masks = [rle.decode(code, *native) for code in (codes[image_id], labels[image_id])]
        pictures.append((f"Dice {score:.3f}", overlay(image, *masks, width=400, legend=False)))
    write_png(path, contact_sheet(pictures))


def main(arguments: Sequence[str]) -> int:
    """The verb: see HELP."""
    parser = argparse.ArgumentParser(
        prog="jaxpneumo evaluate", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a finished training run")
    parser.add_argument("--data", type=Path, help="prepared data set (default: the run's)")
    parser.add_argument(
        "--part",
        choices=("validation", "train", "all"),
        default="validation",
        help="images to score: a part of the run's split, or all (default: validation)",
    )
    parser.add_argument("--output", type=Path, help="folder to write to (default: WORKDIR/evaluation)")
    parser.add_argument("--batch-size", type=int, help="default: the run's predict.batch_size")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)

    predictor = load_predictor(options.workdir)
    if options.batch_size is not None:
        predictor.config.predict.batch_size = options.batch_size
    data = options.data or Path(predictor.config.data.directory)
    rows, split = _part(options.workdir, data, options.part)
    output = options.output or options.workdir / "evaluation"
    print(table(evaluate(predictor, data, rows, split, output, options.quiet)))
    print(f"Written to {output}")
    return DONE

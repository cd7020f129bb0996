"""`jaxpneumo evaluate`: scores a finished run at native size, with and without TTA and removal threshold (2x2).

The scores come from the counts (tp, fp, fn) of each image, compared with the masks of the label file at native size.
Each score has an interval. The two baselines, empty predictions and the mean shape, have scores too.
"""

import csv
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from jaxpneumo.data import dataset, rle
from jaxpneumo.data.splits import OUT_OF_FOLD
from jaxpneumo.evaluate import parts, thresholds
from jaxpneumo.evaluate.modes import GATED, VIEWS, own_mode
from jaxpneumo.evaluate.summary import summarise
from jaxpneumo.evaluate.summary_text import NOTE, table
from jaxpneumo.predict import saved_thresholds, workdir_options
from jaxpneumo.predict.certainty import check_classifier
from jaxpneumo.predict.gate import add_arguments as add_gate_arguments
from jaxpneumo.predict.gate import describe as describe_gate
from jaxpneumo.predict.gate import load_gate
from jaxpneumo.predict.pictures import contact_sheet, overlay
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.submission import write_submission
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_atomically, write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import BATCH, REPLICATES, SEED
from jaxpneumo.run.config import Config, read_config
from jaxpneumo.run.tta import TTA
from jaxpneumo.score import baseline, bootstrap, metrics
from jaxpneumo.score.calibration import calibration
from jaxpneumo.score.scores import DISTANCES, REGIONS
from jaxpneumo.score.threshold_counts import write_counts

# Modules that need JAX are imported where they are used, so --help and error messages for wrong flags are fast.
if TYPE_CHECKING:
    from jaxpneumo.evaluate.images import Measured
    from jaxpneumo.predict.infer import Predictor
    from jaxpneumo.run.config import Predict

GALLERY = 12

HELP = """\
Scores a finished run on held-out images at their native size. Not a medical device.

Scores: Dice and IoU per image, with and without test-time augmentation (TTA) and removal threshold; detection by
image and by region; distances between outlines. Two baselines are scored too: empty predictions, and the mean shape
for every image.

Intervals: 95 % bootstrap. With another --seed their ends may differ by a hundredth; --replicates 20000 makes that a
third. A score that is 0 or 1 for all patients has the exact interval (Clopper-Pearson, patients as trials). Any other
score of fewer than five patients has none, nor has the expected calibration error: it is biased upwards, more so in
replicates.

It writes to WORKDIR/evaluation (or --output)
  summary.json      all scores with intervals and strata, data, split, resolution and thresholds
  metrics.csv       for each image, its row of the data set's index.csv and its scores
  calibration.json  reliability and temperature of the image-level scores, and the uncertain images
  thresholds.json   scores at many probability and removal thresholds (`jaxpneumo thresholds` chooses some)
  levels.npz        the counts behind thresholds.json
  submission.csv    ImageId,EncodedPixels with the run's own settings
  gallery.png       images with prediction and truth, from the best to the worst

examples:
  jaxpneumo evaluate --workdir runs/exp5
  jaxpneumo evaluate --workdir runs/exp5 --data data/other-hospital --part all --output other-hospital
  jaxpneumo evaluate --workdir runs/exp5 --thresholds triplet --output with-triplet
  jaxpneumo evaluate --workdir runs/x5_outline --gate runs/x5_decide --gate-thresholds gate --output with-gate
  jaxpneumo evaluate --workdir runs/a --workdir runs/b --weights 0.7,0.3 --output ensemble

WORKDIR/evaluation holds the run's own scores, which tables, compare, report, thresholds and predict read. Another part,
data set, TTA, thresholds or a gate therefore need --output.

With several runs, the mean of their probabilities is used, with the settings of the first run. Runs of different
folds are scored out of fold: each image by the runs that were not trained on it.

With --gate RUN, as in `jaxpneumo predict`, there is one more row of scores: the run's own settings with the gate.
submission.csv, gallery and the counts in levels.npz are those with the gate.
"""


def evaluate(
    predictor: "Predictor",
    data: Path,
    rows: np.ndarray,
    split: dict[str, Any],
    output: Path,
    quiet: bool = False,
    replicates: int = bootstrap.REPLICATES,
    seed: int = bootstrap.SEED,
    thresholds_from: str = "",
    teams: Iterable[tuple["Predictor", np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Scores the given rows of a prepared data set and writes the files of HELP.

    Args:
      predictor: the result of `load_predictor` or `ensemble.combine`.
      data: the prepared data set.
      rows: rows of the images in the data set.
      split: description of the split and part of these images.
      output: folder to write to.
      quiet: shows no progress bar.
      replicates, seed: number of replicates and seed of the bootstrap.
      thresholds_from: `saved_thresholds.origin` of the settings; "" for those of the run.
      teams: see `measure`.

    Returns:
      The content of summary.json.

    Raises:
      InputError: there are no images, or the data set lacks images at the config's predict.size.
    """
    from jaxpneumo.evaluate.images import measure

    settings = predictor.settings
    info, index, labels = dataset.read_info(data), dataset.read_index(data), dataset.read_labels(data)
    images, _ = dataset.open_arrays(data, settings.size)
    if len(rows) == 0:
        raise InputError("there are no images to evaluate; check --part and the split.")
    # Out of fold, each image is in the training part of some of the runs.
    shape = None if split["method"] == OUT_OF_FOLD else _mean_shape(predictor)
    measured = measure(
        predictor, images, index, labels, rows, dataset.read_spacing(data), shape[0] if shape else None, quiet, teams
    )
    mode = own_mode(settings) + ("" if measured.kept is None else GATED)
    results = summarise(measured, index, rows, mode, replicates, seed)
    natives = sorted({f"{h}x{w}" for h, w in zip(index.height[rows], index.width[rows], strict=True)})
    summary = {
        "note": NOTE,
        "data": {
            "directory": data.name,
            "synthetic": info["synthetic"],
            "images": info["counts"]["images"],
            "positive": info["counts"]["positive"],
            "labels_sha256": dataset.sha256_of(info, "labels.csv"),
        },
        "split": split,
        "run": {"workdir": predictor.workdir.name, "stage": predictor.stage, "mode": mode, **_origin(predictor)},
        "input_size": settings.size,
        "tta": settings.tta,
        "scored_at": natives,
        "threshold": settings.threshold,
        "removal": {"threshold": settings.removal_threshold, "rule": settings.removal_rule},
        **(
            {}
            if settings.top_area is None
            else {"top": {"threshold": settings.top_threshold, "area": settings.top_area}}
        ),
        "thresholds_from": thresholds_from,
        **({"gate": _gate(cast("Predictor", predictor.gate), measured)} if predictor.gate else {}),
        **_classifier(settings, measured),
        "mean_shape_made_from": shape[1] if shape else None,
        **results,
    }
    for name in ("summary.json", "thresholds.json"):  # of an earlier evaluation, whose other files go now
        (output / name).unlink(missing_ok=True)
    _write_metrics(output / "metrics.csv", measured, index, rows)
    write_counts(output / "levels.npz", measured.counts)
    cluster, _ = bootstrap.clusters(index.patient[rows])
    positive, view = measured.counts.truth_area > 0, VIEWS[int(bool(settings.tta))]
    write_json(
        output / "calibration.json",
        {"view": view}
        | {
            name: calibration(measured.image_scores[view][name], positive, cluster)
            for name in measured.image_scores[view]
        },
    )
    if cluster.max() > 0:
        write_json(output / "thresholds.json", thresholds.choose_all(measured.counts, index.patient[rows]))
    write_submission(output / "submission.csv", sorted(measured.codes.items()))
    dices = metrics.dice(*(measured.modes[mode][name] for name in ("tp", "fp", "fn")))
    _write_gallery(output / "gallery.png", dices, rows, measured.codes, labels, images, index)
    # Written last: an evaluation with a summary.json is complete.
    write_json(output / "summary.json", summary)
    return summary


def _origin(predictor: "Predictor") -> dict[str, Any]:
    """Weights' fingerprints, runs and weights of an ensemble, and whether it was trained on synthetic radiographs."""
    runs = [{"workdir": workdir.name, "weight": weight} for workdir, weight in predictor.weighted_runs]
    facts = {"model": predictor.model_id, "trained_on_synthetic": predictor.synthetic}
    return ({"members": runs} if runs else {}) | facts


def _gate(gate: "Predictor", measured: "Measured") -> dict[str, Any]:
    """The gate, the images that it kept, and how many of all images it was trained on; None where that is unknown."""
    return {
        "workdir": gate.workdir.name,
        **describe_gate(gate),
        "images_kept": int(cast(np.ndarray, measured.kept).sum()),
        "images_in_training": parts.count_trained([gate.workdir], measured.counts.image_id),
    }


def _classifier(settings: "Predict", measured: "Measured") -> dict[str, Any]:
    """The classifier's threshold and how many images are kept, where it has one."""
    if settings.classifier_threshold is None or measured.counts.finding is None:
        return {}
    kept = int((measured.counts.finding >= settings.classifier_threshold).sum())
    return {"classifier": {"threshold": settings.classifier_threshold, "images_kept": kept}}


def evaluate_run(predictor: "Predictor", quiet: bool = False) -> dict[str, Any]:
    """Scores a run on the validation images of its own split and writes to its own folder."""
    data = Path(predictor.config.data.directory)
    ((_, rows),), split = parts.select([predictor.workdir], data, "validation")
    return evaluate(predictor, data, rows, split, predictor.workdir / "evaluation", quiet)


def _mean_shape(predictor: "Predictor") -> tuple[np.ndarray, dict[str, Any]] | None:
    """The mean shape of the run's own training masks; None if the training data cannot be read."""
    data, size = Path(predictor.config.data.directory), predictor.settings.size
    try:
        ((_, rows),), _ = parts.select([predictor.workdir], data, "train")
        _, masks = dataset.open_arrays(data, size)
        positive = dataset.read_index(data).positive
    except InputError:
        return None
    return baseline.mean_shape(masks, rows[positive[rows]])


def _write_metrics(path: Path, measured: "Measured", index: dataset.Index, rows: np.ndarray) -> None:
    columns: dict[str, Iterable[Any]] = {
        "row": rows,
        "ImageId": index.image_id[rows],
        "truth_area": measured.counts.truth_area,
        "patient": index.patient[rows],
        "sex": index.sex[rows],
        "age": ["" if np.isnan(age) else f"{age:g}" for age in index.age[rows]],
    }
    names = ("view", "height", "width", "mask_area", "label_rows", "source", "sha256")
    columns |= {name: getattr(index, name)[rows] for name in names}
    for view, scores in measured.image_scores.items():
        columns |= {f"{view}_{name}": [f"{value:.6f}" for value in values] for name, values in scores.items()}
    columns["lesions"] = measured.modes["plain"]["lesions"]
    for mode, found in measured.modes.items():
        tp, fp, fn = (found[name] for name in ("tp", "fp", "fn"))
        columns |= {f"{mode}_tp": tp, f"{mode}_area": tp + fp}
        columns[f"{mode}_dice"] = [f"{value:.6f}" for value in metrics.dice(tp, fp, fn)]
        columns[f"{mode}_iou"] = [f"{value:.6f}" for value in metrics.iou(tp, fp, fn)]
        columns |= {f"{mode}_{name}": found[name] for name in REGIONS[1:]}
        for name in DISTANCES:
            columns[f"{mode}_{name}"] = ["" if np.isnan(value) else f"{value:.4f}" for value in found[name]]
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_gallery(
    path: Path,
    dices: np.ndarray,
    rows: np.ndarray,
    codes: dict[str, str],
    labels: dict[str, str],
    images: np.ndarray,
    index: dataset.Index,
) -> None:
    """Writes pictures from the best to the worst Dice, evenly spaced. Prefers images with a true or predicted mask."""
    scored = list(zip(dices.tolist(), rows.tolist(), index.image_id[rows].tolist(), strict=True))
    not_plain = [one for one in scored if labels[one[2]] != rle.EMPTY or codes[one[2]] != rle.EMPTY]
    shown = sorted(not_plain or scored, key=lambda one: -one[0])
    places = np.unique(np.linspace(0, len(shown) - 1, GALLERY).round().astype(int))
    pictures = []
    for score, row, image_id in (shown[i] for i in places):
        native = (int(index.height[row]), int(index.width[row]))
        image = cv2.resize(np.asarray(images[row]), native[::-1], interpolation=cv2.INTER_LINEAR)
        masks = [rle.decode(code, *native) for code in (codes[image_id], labels[image_id])]
        pictures.append((f"Dice {score:.3f}", overlay(image, *masks, width=400)))
    write_png(path, contact_sheet(pictures))


def _departures(options: Namespace, config: Config) -> list[str]:
    """The options with which an evaluation is not of the run's own validation images and settings."""
    of_others = {
        f"--part {options.part}": options.part != "validation",
        f"--data {options.data}": options.data and options.data.resolve() != Path(config.data.directory).resolve(),
        f"--tta {options.tta}": options.tta not in (None, config.predict.tta),
        f"--thresholds {options.thresholds}": options.thresholds,
        f"--gate {options.gate}": options.gate,
    }
    return [option for option, departs in of_others.items() if departs]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo evaluate", description=HELP)
    workdir_options.add_arguments(parser)
    add_gate_arguments(parser)
    parser.add_argument("--data", type=places.path, help="prepared data set (default: the run's)")
    parser.add_argument(
        "--part",
        choices=("validation", "train", "all"),
        default="validation",
        help="which images to score: a part of the run's split, or all images (default: validation)",
    )
    parser.add_argument(
        "--output",
        type=places.folder_to_fill,
        help="folder to write to (default: WORKDIR/evaluation, for the run's own scores only)",
    )
    parser.add_argument("--tta", type=TTA, metavar="NAMES", help=f"test-time augmentation: {TTA} (default: the run's)")
    parser.add_argument("--thresholds", metavar="NAME", help="use the thresholds saved under this name")
    parser.add_argument("--batch-size", type=BATCH, help="images per batch (default: the run's predict.batch_size)")
    parser.add_argument("--replicates", type=REPLICATES, default=bootstrap.REPLICATES, help="bootstrap replicates")
    parser.add_argument("--seed", type=SEED, default=bootstrap.SEED, help="random seed of the bootstrap")
    options = parser.parse_args(arguments)

    workdirs = workdir_options.read_workdirs(options.workdir)
    weights = workdir_options.read_weights(options.weights, len(workdirs))
    if len(workdirs) > 1 and options.output is None:
        raise InputError("several runs need a folder of their own for the scores: give --output FOLDER.")
    from jaxpneumo.predict.ensemble import combine
    from jaxpneumo.predict.infer import load_predictor
    from jaxpneumo.run.shared import is_shared

    if options.output is None and is_shared(workdirs[0]):
        raise InputError(f"{workdirs[0]} is a shared folder and stays as it is: give --output FOLDER.")
    if options.output is None and (others := _departures(options, read_config(workdirs[0]))):
        raise InputError(
            f"{workdirs[0]}/evaluation is for the scores of the run's own validation images and settings, which other "
            f"commands read there: with {' and '.join(others)}, give --output FOLDER."
        )
    loaded = [load_predictor(workdir) for workdir in workdirs]
    predictor = combine(loaded, weights)
    settings = predictor.settings
    if options.batch_size is not None:
        settings = replace(settings, batch_size=options.batch_size)
    if options.tta is not None:
        settings = replace(settings, tta=options.tta)
    if options.thresholds:
        settings = saved_thresholds.use(workdirs[0], options.thresholds, settings)
    gate = load_gate(options.gate, options.gate_thresholds, settings)
    predictor = replace(predictor, settings=settings, gate=gate)
    check_classifier(predictor)
    data = options.data or Path(predictor.config.data.directory)
    if options.data is None and not data.is_dir():
        raise InputError(f"{data}, the data set of {workdirs[0]}, was not found. Give its folder as --data.")
    teams, split = parts.select(workdirs, data, options.part, weights)
    classify = {any(loaded[run].config.model.classifier for run in members if weights[run] > 0) for members, _ in teams}
    if len(classify) > 1:
        raise InputError(
            "only some of the runs have a classifier, so that images of different folds have scores of different "
            "kinds. Evaluate the runs that have one by themselves, and the others by themselves."
        )
    output = options.output or workdirs[0] / "evaluation"
    places.check_folder(output, "--output")
    run_report.place(output)

    def of_team(members: Sequence[int]) -> "Predictor":
        if len(teams) == 1:
            return predictor
        own = workdir_options.read_weights([weights[run] for run in members], len(members))
        return replace(combine([loaded[run] for run in members], own, settings.size), settings=settings, gate=gate)

    origin = saved_thresholds.origin(settings, workdirs, options.thresholds, predictor.model_id, weights)
    summary = evaluate(
        predictor,
        data,
        np.sort(np.concatenate([rows for _, rows in teams])),
        split,
        output,
        replicates=options.replicates,
        seed=options.seed,
        thresholds_from=origin,
        teams=((of_team(members), rows) for members, rows in teams),
    )
    print(table(summary))
    print(origin)
    chosen = output / "thresholds.json"
    if len(workdirs) > 1 and not options.thresholds and chosen.is_file():
        found = read_json(chosen)["rules"]["triplet"]
        named = " ".join(f"--workdir {workdir}" for workdir in workdirs)
        # Of the folds of one network, the mean that predictions have was scored on no image.
        alone = "on the scores of single runs, one an image, as no mean of runs was scored"
        whom = alone if split.get("runs_per_image") == [1] else "for this ensemble on these images"
        print(
            f"Chosen {whom}: {saved_thresholds.words(found['thresholds'])}; Dice "
            f"{found['held_out']:.4f} on held-out patients. Save them with `jaxpneumo thresholds {named} --evaluation "
            f"{output}`."
        )
    print(f"Written to {output}")
    return DONE

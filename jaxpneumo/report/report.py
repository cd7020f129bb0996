"""`jaxpneumo report`: writes one HTML page about a run. The page needs no network and no other files.

It reads the files of training and evaluation and predicts nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from jaxpneumo.data import dataset
from jaxpneumo.data.splits import words
from jaxpneumo.evaluate.modes import GATED, image_score
from jaxpneumo.evaluate.results import nothing_found, read_metrics, read_summary
from jaxpneumo.evaluate.tables import TABLES, VALIDATION, paper_of
from jaxpneumo.export.description import settings_of
from jaxpneumo.predict import saved_thresholds, trained_on
from jaxpneumo.predict.certainty import SCORE_WORDS
from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import whole
from jaxpneumo.process.software import software
from jaxpneumo.report.gallery import FILTERS, make_gallery
from jaxpneumo.run.config import Config, read_config
from jaxpneumo.run.provenance import read_starts
from jaxpneumo.score import bootstrap, scores
from jaxpneumo.score.calibration import NO_INTERVAL
from jaxpneumo.train.log import read_log

if TYPE_CHECKING:  # slow modules, such as matplotlib, are imported where they are used, so --help is fast
    from jinja2 import Environment

IMAGES = 200
MODES = {"plain": "no TTA", "tta": "TTA", "removal": "R-TH", "tta_removal": "TTA + R-TH"}
EXPERIMENTS = tuple(dict.fromkeys(row.run for rows in TABLES.values() for row in rows))

HELP = """\
Writes one self-contained HTML page about a trained and evaluated run. It shows the scores with intervals, the papers'
scores and the scores of empty predictions for comparison, thresholds, calibration, groups of patients, training curves
and the origin of the run. A gallery shows radiographs with the true and the predicted outlines. Not a medical device.

It writes
  WORKDIR/report.html    the page; opens in any browser, without network
  WORKDIR/report/*.png   its figures

The page holds radiographs: treat it as you treat the images that the run was evaluated on.

examples:
  jaxpneumo report --workdir runs/exp5
  jaxpneumo report --workdir runs/quick-look --experiment exp5 --images 50
  jaxpneumo report --workdir runs/exp5 --data /mnt/elsewhere/siim
"""


def write_report(
    workdir: Path, data: Path | None = None, images: int = IMAGES, experiment: str | None = None
) -> tuple[Path, list[str]]:
    """Writes WORKDIR/report.html and the figures in WORKDIR/report.

    Args:
      workdir: folder of a finished and evaluated run.
      data: its prepared data set; None uses the folder in the run's config.
      images: largest number of images in the gallery.
      experiment: one of EXPERIMENTS. The page shows the papers' scores of this experiment. None uses the name of the
        run's folder, if it is one of EXPERIMENTS.

    Returns:
      The path of the page, and sentences about missing figures.

    Raises:
      InputError: the run is not finished or not evaluated, or its files do not match each other.
    """
    if images < 1:
        raise InputError(f"--images={images}: the gallery needs at least one image.")
    if experiment is not None and experiment not in EXPERIMENTS:
        raise InputError(f"--experiment={experiment} is none of the papers': choose of {', '.join(EXPERIMENTS)}.")
    config = read_config(workdir)
    summary = read_summary(workdir)
    data = data or Path(config.data.directory)
    info = _data_info(workdir, data, summary)
    metrics = read_metrics(workdir / "evaluation/metrics.csv")
    mode, (view, score) = summary["run"]["mode"], image_score(summary)
    named = {name: title.replace("R-TH", "rule") if "top" in summary else title for name, title in MODES.items()}
    modes = named | {name: f"{named[name.removesuffix(GATED)]} + gate" for name in (mode,) if name.endswith(GATED)}
    if len(metrics["ImageId"]) != summary["n_images"] or f"{mode}_tp" not in metrics:
        raise InputError(
            f"{workdir}/evaluation: metrics.csv and summary.json are of different evaluations. Run "
            f"`jaxpneumo evaluate --workdir {workdir}` again."
        )
    thresholds = _optional(workdir / "evaluation/thresholds.json")
    calibration = _optional(workdir / "evaluation/calibration.json")
    logs = {stage.name: _epochs(workdir / stage.name / "log.jsonl") for stage in config.stages}
    gallery = make_gallery(workdir, data, config.predict.size, mode, f"{view}_{score}", images)
    figures, lacking = _figures(workdir, config, summary, metrics, thresholds, calibration, logs)

    page = (
        _environment()
        .get_template("template.html")
        .render(
            name=workdir.resolve().name,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            summary=summary,
            nothing_found=nothing_found(summary),
            trained_on=trained_on.in_words(summary),
            in_training=trained_on.images_in_training(summary),
            split=words(summary["split"]),
            split_facts=_flat(summary["split"]),
            mode=mode,
            modes=modes,
            own=summary["scores"][mode],
            own_ends=summary["intervals"]["scores"][mode],
            level=summary["image_level"][view][score],
            level_ends=summary["intervals"]["image_level"][view][score],
            fewest=bootstrap.FEWEST,
            no_interval=NO_INTERVAL,
            score_words=SCORE_WORDS[score],
            gain=_gain_over_nothing(metrics, mode),
            papers=_papers(experiment or workdir.resolve().name),
            experiment=experiment or workdir.resolve().name,
            experiments=EXPERIMENTS,
            thresholds=thresholds,
            used=saved_thresholds.words(settings_of(summary)),
            calibration=calibration and calibration.get(score),
            figures=figures,
            lacking=lacking,
            gallery=gallery,
            filters=FILTERS,
            config=_flat(config.to_dict()),
            info=info,
            starts=read_starts(workdir),
            software=software(),
            workdir=workdir,
        )
    )
    path = workdir / "report.html"
    with write_atomically(path) as file:
        file.write(page)
    return path, list(lacking.values())


def _data_info(workdir: Path, data: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Reads dataset.json. Raises InputError unless `data` is the data set of the evaluation."""
    try:
        info = dataset.read_info(data)
    except InputError as error:
        raise InputError(
            f"the prepared data of {workdir}, which the gallery shows, are not at {data}. Say where they are: "
            f"`jaxpneumo report --workdir {workdir} --data DIR`."
        ) from error
    if dataset.sha256_of(info, "labels.csv") != summary["data"]["labels_sha256"]:
        raise InputError(
            f"{workdir} was evaluated on another data set ({summary['data']['directory']}) than {data}. Give that "
            f"one with --data, or run `jaxpneumo evaluate --workdir {workdir}` again."
        )
    return info


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _epochs(path: Path) -> list[dict[str, Any]]:
    """Records of a stage's log at the end of each epoch; none without a log (a stage taken from another run)."""
    return [record for record in read_log(path) if "validation_loss" in record] if path.is_file() else []


def _gain_over_nothing(metrics: dict[str, np.ndarray], mode: str) -> dict[str, Any]:
    """The paired difference between the mean Dice of the run and of empty predictions, see `bootstrap.paired`."""
    truth, area, tp = (metrics[name].astype(np.int64) for name in ("truth_area", f"{mode}_area", f"{mode}_tp"))
    nothing = scores.ratios({"tp": 0 * truth, "fp": 0 * truth, "fn": truth})
    ours = scores.ratios({"tp": tp, "fp": area - tp, "fn": truth - tp})
    cluster, _ = bootstrap.clusters(metrics["patient"])
    return bootstrap.paired({"dice": nothing["dice"]}, {"dice": ours["dice"]}, cluster)["dice"]


def _papers(experiment: str) -> dict[str, Any] | None:
    """The papers' scores of an experiment: validation IoU by mode, all others with their titles, and the source."""
    rows = [(title, row) for title, rows in TABLES.items() for row in rows if row.run == experiment]
    if not rows:
        return None
    validation = {row.mode: row.paper for _, row in rows if row.folder == VALIDATION and row.score == "iou"}
    others = [(title, row) for title, row in rows if row.folder != VALIDATION or row.score != "iou"]
    return {"iou": validation, "others": others, "source": paper_of(experiment)}


def _figures(
    workdir: Path,
    config: Config,
    summary: dict[str, Any],
    metrics: dict[str, np.ndarray],
    thresholds: dict[str, Any] | None,
    calibration: dict[str, Any] | None,
    logs: dict[str, list[dict[str, Any]]],
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Draws all figures that have data.

    Returns:
      name -> {"light", "dark"} data URIs, "width" and "height"; and name -> reason why a figure is missing.
    """
    from jaxpneumo.report import figures

    found, lacking = {}, {}
    mode, (_, score) = summary["run"]["mode"], image_score(summary)
    drawings = {}
    if any(logs.values()):
        drawings["training"] = figures.training({stage: records for stage, records in logs.items() if records})
    else:
        lacking["training"] = f"No training curves: {workdir} has no log.jsonl."
    if thresholds:
        own = None if "top" in summary else settings_of(summary)
        drawings["thresholds"] = figures.threshold_surfaces(thresholds, own)
    else:
        lacking["thresholds"] = f"No threshold search yet: run `jaxpneumo thresholds --workdir {workdir}`."
    if calibration and calibration.get(score):
        drawings["reliability"] = figures.reliability(calibration[score])
    elif calibration:
        lacking["reliability"] = (
            "No calibration: too few patients with or without pneumothorax to fit on some and score others."
        )
    else:
        lacking["reliability"] = f"No calibration yet: run `jaxpneumo evaluate --workdir {workdir}`."
    if summary["strata"]:
        drawings["strata"] = figures.strata(summary["strata"], summary["scores"][mode])
    else:
        lacking["strata"] = "No groups: the data set says nothing about the images' patients."
    positive = metrics["truth_area"].astype(np.int64) > 0
    if positive.any():
        columns = {n: metrics[n][positive].astype(float) for n in ("truth_area", "height", "width", f"{mode}_dice")}
        area = columns["truth_area"] * NATIVE_AREA / (columns["height"] * columns["width"])
        removal = summary["removal"]["threshold"] if mode.removesuffix(GATED).endswith("removal") else 0
        drawings["dice_by_size"] = figures.dice_by_size(area, columns[f"{mode}_dice"], removal)
    else:
        lacking["dice_by_size"] = "None of the images has a pneumothorax."

    themes = {"light": figures.LIGHT, "dark": figures.DARK}
    for name, (draw, size) in drawings.items():
        files = {kind: figures.png(draw, size, theme) for kind, theme in themes.items()}
        with write_atomically(workdir / "report" / f"{name}.png", "wb") as file:
            file.write(files["light"])
        found[name] = {
            kind: "data:image/png;base64," + base64.b64encode(content).decode() for kind, content in files.items()
        }
        found[name]["width"] = round(size[0] * 96)
        found[name]["height"] = round(size[1] * 96)
    for name in lacking:
        (workdir / "report" / f"{name}.png").unlink(missing_ok=True)
    return found, lacking


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens a config: dotted name -> value as text.

    An absolute path is reduced to its last name, because other people may read the page.
    """
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            text = "none" if item is None or item == "" else str(item)
            flat[prefix + key] = Path(text).name if Path(text).is_absolute() else text
    return flat


def _environment() -> "Environment":
    """Makes the template environment. It escapes all values, except script and style from the package's own files."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxpneumo.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    folder = resources.files("jaxpneumo.report")
    script, style = (folder.joinpath(f"template.{kind}").read_text("utf-8") for kind in ("js", "css"))
    environment.globals["script"], environment.globals["style"] = Markup(script), Markup(style)
    # The hash lets the page run only this script, even if a value on the page contains another one.
    environment.globals["script_sha256"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["score"] = _score
    environment.filters["ends"] = _ends
    environment.filters["signed"] = lambda value: "-" if value is None else f"{value:+.4f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment


def _score(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits if abs(value) < 10 else 1}f}"


def _ends(ends: Sequence[float] | None, digits: int = 4) -> str:
    """Formats an interval with the digits of its score; "" without an interval or if both ends are equal."""
    if not ends:
        return ""
    digits = digits if max(map(abs, ends)) < 10 else 1
    low, high = (f"{end:.{digits}f}" for end in ends)
    return "" if low == high else f"[{low}, {high}]"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo report", description=HELP)
    parser.add_argument("--workdir", type=places.folder_to_fill, required=True, help="a finished and evaluated run")
    parser.add_argument("--data", type=places.path, help="prepared data set of the run (default: that of its config)")
    parser.add_argument(
        "--images", type=whole(1, 100_000), default=IMAGES, help=f"images in the gallery, at most (default: {IMAGES})"
    )
    parser.add_argument(
        "--experiment",
        choices=EXPERIMENTS,
        metavar="EXPERIMENT",
        help="show the papers' scores of this experiment (default: the name of the run's folder, if it is one)",
    )
    options = parser.parse_args(arguments)
    run_report.place(options.workdir / "report")
    path, lacking = write_report(options.workdir, options.data, options.images, options.experiment)
    for sentence in lacking:
        print(sentence)
    print(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB), figures to {options.workdir / 'report'}")
    return DONE

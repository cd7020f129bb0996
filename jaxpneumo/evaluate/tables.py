"""`jaxpneumo tables`: prints the papers' Tables 5 to 8, 10 and 11, and Jakhar et al.'s result, with our runs' scores.

The title of a table names its content. Each of our scores comes with its interval, data and split, because the papers
scored other images: their validation part is another random draw. The papers' test scores use the removal threshold
(section 5.1), and also TTA unless the row says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpneumo.data.splits import words
from jaxpneumo.evaluate.results import read_summary
from jaxpneumo.predict.trained_on import images_in_training
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.run.config import Config, read_config, typed

HELP = """\
Prints the papers' tables of results. Each row has the papers' score, our score with its 95 % interval, and the data
and split of our score. A row without a finished and evaluated run says so. Not a medical device.

The names of the folders in --runs tell which run is which: exp1 to exp5, exp5_round2 (exp5 trained on the data of
round 2), augmentation_study_none, _A1, _A2, _A1+A2, _A3, _A4, unet256. Validation scores come from the folder
evaluation/ of a run, test scores from evaluation-test/. This command makes the folder evaluation-test/:
  jaxpneumo evaluate --workdir runs/exp5 --data data/round1-test --part all --output runs/exp5/evaluation-test

A run with the name of an experiment may have been trained otherwise than its config says: shorter, say, or with a
smaller network. Its rows have a *, and a note below the tables names the settings that differ.

examples:
  jaxpneumo tables --runs runs
  jaxpneumo tables --runs runs --output tables.json
"""

VALIDATION, TEST = "evaluation", "evaluation-test"
_ARMS = ("none", "A1", "A2", "A1+A2", "A3", "A4")
_MODES = ("plain", "tta", "removal", "tta_removal")
_WORDS = {"plain": "no TTA", "tta": "TTA", "removal": "R-TH", "tta_removal": "TTA + R-TH"}


MOST = 12  # differences of a run from its config that are told as text
_FREE = ("pretrained", "remat", "dtype", "engine", "start_from")  # of a config: where files lie and how it computes


@dataclass(frozen=True)
class Row:
    """One score of a paper, and the location of our score: run folder, evaluation folder in it, mode, score."""

    label: str
    paper: float | None
    run: str
    folder: str
    mode: str
    score: str


def _by_mode(label: str, figures: tuple[float, ...], run: str, folder: str, score: str) -> list[Row]:
    return [
        Row(f"{label} {_WORDS[mode]}", figure, run, folder, mode, score)
        for mode, figure in zip(_MODES, figures, strict=True)
    ]


_EXPERIMENTS = {
    "exp1": (0.7242, 0.7395, 0.8125),
    "exp2": (0.7349, 0.7523, 0.8154),
    "exp3": (0.7105, 0.7401, 0.8300),
    "exp4": (0.7422, 0.7631, 0.8407),
    "exp5": (0.7638, 0.7822, 0.8502),
}
_STUDY_VALIDATION = {
    "none": (0.7459, 0.7370, 0.7840, 0.7832),
    "A1": (0.7490, 0.7593, 0.7842, 0.7850),
    "A2": (0.7330, 0.7341, 0.7825, 0.7819),
    "A1+A2": (0.7496, 0.7608, 0.7842, 0.7843),
    "A3": (0.7457, 0.7379, 0.7846, 0.7833),
    "A4": (0.7660, 0.7656, 0.7844, 0.7842),
}
_STUDY_TEST = {
    "none": (0.7859, 0.7824, 0.8111, 0.8074),
    "A1": (0.8000, 0.8067, 0.8127, 0.8188),
    "A2": (0.7820, 0.7767, 0.8105, 0.8105),
    "A1+A2": (0.8004, 0.8092, 0.8152, 0.8212),
    "A3": (0.7985, 0.7889, 0.8172, 0.8095),
    "A4": (0.8012, 0.8027, 0.8142, 0.8144),
}

TABLES: dict[str, list[Row]] = {
    "Validation IoU of the experiments, round 1": [
        Row(f"{name} {_WORDS[mode]}", figures[i], name, VALIDATION, mode, "iou")
        for name, figures in _EXPERIMENTS.items()
        for i, mode in enumerate(("plain", "tta"))
    ],
    "Test Dice of the experiments, round 1": [
        Row(name, figures[2], name, TEST, "tta_removal", "dice") for name, figures in _EXPERIMENTS.items()
    ],
    "Validation IoU of exp5, round 2": [
        Row(f"exp5 {_WORDS[mode]}", figure, "exp5_round2", VALIDATION, mode, "iou")
        for mode, figure in (("plain", 0.7543), ("removal", 0.7693), ("tta", 0.7945), ("tta_removal", 0.7946))
    ],
    "Test Dice of exp5, round 2 (private part)": [
        Row("trained on round 1", 0.8247, "exp5", f"{TEST}-round2", "removal", "dice"),
        Row("trained on round 1, TTA", 0.8330, "exp5", f"{TEST}-round2", "tta_removal", "dice"),
        Row("trained on round 2", 0.8298, "exp5_round2", f"{TEST}-round2", "removal", "dice"),
        Row("trained on round 2, TTA", 0.8356, "exp5_round2", f"{TEST}-round2", "tta_removal", "dice"),
    ],
    "Augmentation study, validation IoU": [
        row
        for arm in _ARMS
        for row in _by_mode(arm, _STUDY_VALIDATION[arm], f"augmentation_study_{arm}", VALIDATION, "iou")
    ],
    "Augmentation study, test Dice": [
        row for arm in _ARMS for row in _by_mode(arm, _STUDY_TEST[arm], f"augmentation_study_{arm}", TEST, "dice")
    ],
    # Their split, too, is one of their own; they neither mirror nor remove.
    "Single U-Net of Jakhar, Kaur and Gupta": [
        Row("unet256 Dice", 0.843, "unet256", VALIDATION, "plain", "dice"),
        Row("unet256 IoU", 0.826, "unet256", VALIDATION, "plain", "iou"),
    ],
}


def paper_of(run: str) -> str:
    """Which paper a run's figures are from."""
    return "Jakhar, Kaur and Gupta" if run == "unet256" else "arXiv 2009.02805"


def collect(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """Fills the tables with the scores of the runs.

    Returns:
      title -> rows {"label", "paper", "run", "folder", "mode", "score", "ours", "interval", "all_empty", "of",
      "differs"}. "differs" has what `differences` says of the run. If our score is missing or of training images,
      "ours", "interval" and "all_empty" are None and "of" gives the reason.

    Raises:
      InputError: `runs` is not a folder.
    """
    if not runs.is_dir():
        raise InputError(f"{runs} is not a folder. Give the folder that holds the runs, such as runs.")
    found: dict[tuple[str, str], dict[str, Any] | str] = {}
    for run, folder in {(row.run, row.folder) for rows in TABLES.values() for row in rows}:
        found[run, folder] = _read(runs / run, folder)
    differs = {run: differences(runs / run) for run, folder in found if isinstance(found[run, folder], dict)}
    return {
        title: [{**_filled(row, found[row.run, row.folder]), "differs": differs.get(row.run, [])} for row in rows]
        for title, rows in TABLES.items()
    }


def differences(workdir: Path) -> list[str]:
    """What of its training differs from the shipped config of the run's name: "stage1.epochs is 2, not 50".

    Where training reads its data and start, and what computes it, are not compared.
    """
    from jaxpneumo.run.config_files import SHIPPED, read_config_file

    own, shipped = (
        _trained_by(config)
        for config in (read_config(workdir), typed(read_config_file(f"{SHIPPED / config_of(workdir.name)}").to_dict()))
    )
    named = [name for name in (*shipped, *(own.keys() - shipped.keys())) if own.get(name) != shipped.get(name)]
    return [f"{name} is {own.get(name, 'missing')}, not {shipped.get(name, 'there')}" for name in named]


def config_of(run: str) -> str:
    """The shipped config file of a run's name, with the argument behind its colon."""
    study, _, arm = run.partition("augmentation_study_")
    return f"augmentation_study.py:{arm}" if not study else f"{run.removesuffix('_round2')}.py"


def _trained_by(config: Config) -> dict[str, Any]:
    """The settings that decide what is learnt, by their dotted names."""
    values = config.to_dict()
    sections = ["model", "loss", "augment", *(stage.name for stage in config.stages)]
    flat = {f"{section}.{name}": value for section in sections for name, value in values[section].items()}
    flat["predict.size"] = config.predict.size
    return {name: value for name, value in flat.items() if name.split(".")[1] not in _FREE}


def _read(run: Path, folder: str) -> dict[str, Any] | str:
    """Reads a summary, or returns the reason why it is missing."""
    if not (run / "config.json").is_file():
        return "no run yet"
    if folder != VALIDATION and not (run / folder / "summary.json").is_file():
        return f"not evaluated on test images ({folder}/)"
    try:
        return read_summary(run, folder)
    except InputError as error:
        if "unfinished" in str(error):
            return "unfinished run"
        if "earlier weights" in str(error):
            return "evaluated before it was trained again"
        return "evaluation of other runs" if ", not of " in str(error) else "not evaluated"


def _filled(row: Row, summary: dict[str, Any] | str) -> dict[str, Any]:
    result = {**vars(row), "ours": None, "interval": None, "all_empty": None, "of": summary}
    if isinstance(summary, dict):
        data, split = summary["data"], summary["split"]
        kind = "SYNTHETIC data" if data["synthetic"] else "data"
        of = (
            f"{kind} {data['directory']}, {words(split)}, {split['part']} part, "
            f"{summary['n_images']} images ({summary['n_positive']} positive)"
        )
        trained = images_in_training(summary)
        if trained:
            return {**result, "of": f"no figure: {trained} of its images are TRAINING images ({of})"}
        remarks = ["it may have been trained on them"] if trained is None else []
        if "top" in summary and "removal" in row.mode:
            remarks.append("with a triplet rule, not R-TH")
        result |= {
            "ours": summary["scores"][row.mode][row.score],
            "interval": summary["intervals"]["scores"][row.mode][row.score],
            "all_empty": summary["all_empty"][row.score],
            "of": of + "".join(f"; {remark}" for remark in remarks),
        }
    return result


def text(tables: dict[str, list[dict[str, Any]]]) -> str:
    """Formats the tables as text."""
    lines = []
    for title, rows in tables.items():
        missing = sum(row["ours"] is None for row in rows)
        lines += [
            f"{title}" + (f"  ({missing} of {len(rows)} rows have no figure of ours yet)" if missing else ""),
            f"{'':>26} {'paper':>6} {'ours':>6} {'95 % interval':>16} {'all empty':>9}  data and split of ours",
        ]
        for row in rows:
            ours = "-" if row["ours"] is None else f"{row['ours']:.4f}"
            ends = "-" if row["ours"] is None else "no interval"
            ends = "[{:.4f}, {:.4f}]".format(*row["interval"]) if row["interval"] else ends
            empty = "-" if row["all_empty"] is None else f"{row['all_empty']:.4f}"
            label = row["label"] + (" *" if row["differs"] and row["ours"] is not None else "")
            lines.append(f"{label:>26} {row['paper']:.4f} {ours:>6} {ends:>16} {empty:>9}  {row['of']}")
        lines.append("")
    differs = {row["run"]: row["differs"] for rows in tables.values() for row in rows if row["ours"] is not None}
    for run, settings in sorted(differs.items()):
        if settings:
            more = f" and {len(settings) - MOST} more" if len(settings) > MOST else ""
            lines.append(f"* {run} is not configs/{config_of(run)}: {'; '.join(settings[:MOST])}{more}.")
    lines.append("The papers' figures are of other images than ours. Research software, not a medical device.")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo tables", description=HELP)
    parser.add_argument("--runs", type=places.path, required=True, help="folder that holds the runs' folders")
    parser.add_argument("--output", type=places.file_to_write, help="also write the tables as JSON")
    options = parser.parse_args(arguments)

    if options.output:
        run_report.place(options.output)
    tables = collect(options.runs)
    print(text(tables))
    if options.output:
        write_json(options.output, tables)
    return DONE

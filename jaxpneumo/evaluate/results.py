"""Reads the files of an evaluation. Errors name files that are missing or do not belong together."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data.dataset import Index
from jaxpneumo.evaluate.modes import GATED
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import read_config
from jaxpneumo.run.folders import final_directory


def read_summary(workdir: Path, folder: str = "evaluation") -> dict[str, Any]:
    """Reads the summary.json of a finished and evaluated run.

    Raises:
      InputError: the folder is not a run, its last stage is not finished, it was not evaluated, or its evaluation is of
        an ensemble, of another run or of weights that the run had before it was trained again.
    """
    stage = read_config(workdir).stages[-1].name
    result = final_directory(workdir / stage)
    if not result.is_dir():
        raise InputError(
            f"{workdir} is an unfinished run ({stage} has no result). Start its training command again: it goes "
            "on where it stopped."
        )
    path = workdir / folder / "summary.json"
    if not path.is_file():
        raise InputError(f"{workdir} was not evaluated: run `jaxpneumo evaluate --workdir {workdir}`.")
    summary = read_json(path)
    if not isinstance(summary, dict) or not {"data", "split", "scores", "intervals"} <= summary.keys():
        raise InputError(f"{path} is of an earlier version: run `jaxpneumo evaluate --workdir {workdir}` again.")
    _check_of(workdir, path, summary.get("run", {}), retrained=result.stat().st_mtime > path.stat().st_mtime)
    return summary


def _check_of(workdir: Path, path: Path, run: dict[str, Any], retrained: bool) -> None:
    """Raises InputError unless an evaluation is of a run itself, with the weights that it has now.

    Args:
      workdir: the run.
      path: the evaluation's summary.json.
      run: what that says of the run.
      retrained: whether the run's result is newer than its evaluation.
    """
    members = [one["workdir"] for one in run.get("members", [])]
    renamed = run.get("workdir") != workdir.resolve().name
    # A run may have been renamed or copied since: then its weights decide, which take seconds to read.
    doubtful = "model" in run and (renamed or retrained)
    if members:
        whose = f"the ensemble of {', '.join(members)}, not of {workdir} alone"
    elif doubtful and run["model"] != _fingerprint(workdir):
        whose = f"another run, {run['workdir']}, not of {workdir} alone" if renamed else f"earlier weights of {workdir}"
    else:
        return
    raise InputError(f"{path} is of {whose}: run `jaxpneumo evaluate --workdir {workdir}` again.")


def _fingerprint(workdir: Path) -> str:
    """The fingerprint of a run's weights, as an evaluation has it."""
    from jaxpneumo.predict.infer import fingerprint
    from jaxpneumo.run.network import make_model, stage_result
    from jaxpneumo.run.state import variable_shapes

    template = variable_shapes(make_model(read_config(workdir).model))
    return fingerprint(stage_result(workdir, None, template))


def nothing_found(summary: dict[str, Any]) -> str:
    """Warns about a run that outlines no true pixel in any image; "" for any other run, and without positive images."""
    mode = summary["run"]["mode"]
    if summary["n_positive"] == 0 or summary["scores"][mode]["sensitivity"] > 0:
        return ""
    plain = "tta" if mode.startswith("tta") else "plain"
    why = "The network may predict nothing, or the thresholds may be too high."
    if summary["scores"][mode.removesuffix(GATED)]["sensitivity"] > 0:
        why = "Without the gate or the classifier's threshold something is outlined."
    elif summary["scores"][plain]["sensitivity"] > 0:
        why = "Without the removal rule something is outlined: choose thresholds with `jaxpneumo thresholds`."
    return (
        f"No true pixel is outlined in any of the {summary['n_positive']} images with pneumothorax: this run is of no "
        f"use, however high its mean scores are. {why}"
    )


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Reads metrics.csv as columns of str. Raises InputError if the file is missing or empty."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Run `jaxpneumo evaluate` again.") from error
    if not rows or None in rows[0]:
        raise InputError(f"{path} holds no images. Run `jaxpneumo evaluate` again.")
    return {name: np.array([row[name] or "" for row in rows]) for name in rows[0]}


def rows_of(index: Index, image_id: np.ndarray, workdir: Path) -> np.ndarray:
    """Finds the rows of images in a data set. Raises InputError if the data set lacks some of the images."""
    row = {name: n for n, name in enumerate(index.image_id.tolist())}
    missing = [name for name in image_id.tolist() if name not in row]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(image_id)} images that {workdir} was evaluated on are not in its data set, "
            f"{missing[0]} first: the data set has changed. Run `jaxpneumo evaluate --workdir {workdir}` again."
        )
    return np.array([row[name] for name in image_id.tolist()], np.int64)

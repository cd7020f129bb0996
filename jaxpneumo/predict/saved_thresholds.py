"""Saved thresholds: WORKDIR/thresholds/NAME.json, the files that `jaxpneumo thresholds` writes."""

import re
from dataclasses import replace
from pathlib import Path

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import Predict
from jaxpneumo.run.config_values import wrong_values

NAMES = ("threshold", "removal_threshold", "removal_rule")
NAMES_OF_TRIPLET = ("top_threshold", "top_area")


def path_of(workdir: Path, name: str) -> Path:
    """The file of the thresholds with this name. Raises InputError if the name cannot be a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"{name!r} cannot be the name of thresholds: use letters, digits, dots, hyphens and underscores."
        )
    return workdir / "thresholds" / f"{name}.json"


def use(workdir: Path, name: str, settings: Predict) -> Predict:
    """Returns the prediction settings with the thresholds that a run saved under this name.

    Raises:
      InputError: the run has no thresholds with this name, the file is damaged, or the thresholds were chosen with
        another input size or another flip TTA setting.
    """
    path = path_of(workdir, name)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(
            f"{workdir} has no thresholds named {name}: {there}. Choose some with "
            f"`jaxpneumo thresholds --workdir {workdir} --name {name}`."
        )
    saved = read_json(path)
    if not isinstance(saved, dict) or any(key not in saved for key in (*NAMES, "tta", "size")):
        raise InputError(f"{path} is not a file of `jaxpneumo thresholds`. Choose the thresholds again.")
    values = {f"predict.{key}": value for key, value in saved.items()}
    if problems := "; ".join(wrong_values(values)).replace("predict.", ""):
        raise InputError(f"{path} cannot be used: {problems}. Choose the thresholds again.")
    if (saved["tta"], saved["size"]) != (settings.tta, settings.size):
        view = "with" if saved["tta"] else "without"
        raise InputError(f"{path} was chosen {view} flip TTA at size {saved['size']}: predict with these settings.")
    return replace(settings, **{key: saved[key] for key in (*NAMES, *NAMES_OF_TRIPLET) if key in saved})

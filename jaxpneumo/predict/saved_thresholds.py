"""Saved thresholds: WORKDIR/thresholds/NAME.json, the files that `jaxpneumo thresholds` writes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxpneumo.data.splits import OUT_OF_FOLD
from jaxpneumo.predict import trained_on
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run import tta
from jaxpneumo.run.config import Predict
from jaxpneumo.run.config_values import wrong_values

NAMES = ("threshold", "removal_threshold", "removal_rule")
NAMES_OF_TRIPLET = ("top_threshold", "top_area")
CLASSIFIER = "classifier_threshold"  # saved where the choice was made with a classifier's scores; None empties no image


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
        another input size or another TTA.
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
    if (tta.recorded(saved["tta"]), saved["size"]) != (settings.tta, settings.size):
        view = tta.words(saved["tta"])
        raise InputError(f"{path} was chosen {view} at size {saved['size']}: predict with these settings.")
    # One choice is saved as a whole: what it has not, it was made without, whatever the config has.
    return replace(settings, **{key: saved.get(key) for key in (*NAMES, *NAMES_OF_TRIPLET, CLASSIFIER)})


def words(thresholds: Mapping[str, Any]) -> str:
    """Formats thresholds under the names of the prediction settings."""
    own = thresholds.get(CLASSIFIER)
    return _words(thresholds) + ("" if own is None else f", classifier {own:g}")


def _words(thresholds: Mapping[str, Any]) -> str:
    if thresholds.get("top_threshold") is not None:
        top, area = thresholds["top_threshold"], thresholds["top_area"]
        text = f"top {top:g}, area {area} px, bottom {thresholds['threshold']:g}"
        if not thresholds["removal_threshold"]:
            return text
        return f"{text}, R-TH {thresholds['removal_threshold']} px ({thresholds['removal_rule']})"
    return f"B-TH {thresholds['threshold']:g}, R-TH {thresholds['removal_threshold']} px ({thresholds['removal_rule']})"


def origin(
    settings: Predict,
    workdirs: Sequence[Path],
    name: str | None,
    model: str,
    weights: Sequence[float],
    given: Sequence[str] = (),
) -> str:
    """Says in a sentence which thresholds a prediction uses, where they come from and what they were chosen for.

    Args:
      settings: the prediction's settings.
      workdirs: its runs; the thresholds are the first one's.
      name: name of saved thresholds; None: those of the config.
      model: its `Predictor.model_id`.
      weights: weights of the runs, which sum to 1.
      given: names of those that flags set instead of the config.
    """
    if name is None:
        flags = f", {' and '.join(given)} by flag" if given else ""
        first = f", the first of {len(workdirs)} runs" if len(workdirs) > 1 else ""
        return f"Thresholds: {words(asdict(settings))}; from the config of {workdirs[0]}{first}{flags}."
    saved = read_json(path_of(workdirs[0], name))
    made_for, chosen_on = saved.get("chosen_for") or {}, saved.get("chosen_on") or {}
    whom = _whom(made_for, workdirs, model, weights)
    whom += f" with the gate {made_for['gate']}" if made_for.get("gate") else ""
    chosen_by = saved.get("chosen_by") or {}
    count = chosen_by.get("n_images")
    part = of_part(chosen_on.get("split") or {}, count, chosen_by.get("of_images", count)) if count else ""
    how = f", on {count} images{part}" if count else ""
    return f"Thresholds: {words(asdict(settings))}; saved as {name} in {workdirs[0]}, chosen for {whom}{how}."


def _whom(made_for: Mapping[str, Any], workdirs: Sequence[Path], model: str, weights: Sequence[float]) -> str:
    """Says which runs a choice was made for, beside those that use it."""
    chosen, own = _members(made_for.get("model") or "", made_for.get("weights") or []), _members(model, weights)
    if chosen is not None and chosen == own:
        return f"this ensemble of {len(workdirs)} runs" if len(workdirs) > 1 else "this run"
    names = made_for.get("runs") or [workdirs[0].name]
    together = "the ensemble of" if made_for.get("model") and len(names) > 1 else "each alone:"
    whom = f"{together} {', '.join(names)}" if len(names) > 1 else names[0]
    same_names = sorted(names) == sorted(workdir.resolve().name for workdir in workdirs)
    if same_names and chosen and own and dict(chosen).keys() != dict(own).keys():
        return f"{whom}, whose weights were others then"
    return f"{whom}, not for this ensemble" if len(workdirs) > 1 else whom


def of_part(split: Mapping[str, Any], count: int, every: int) -> str:
    """Says of which part the `count` images of a choice are, and how many of them the runs were trained on.

    `every` is the number of the images that were scored, of which the choice may be made on one half.
    """
    runs = split.get("runs", [split])  # of several runs, each has a split
    trained = [trained_on.images_in_training({"split": one, "n_images": every}) for one in runs]
    named = dict.fromkeys(str(one["part"]) for one in runs if "part" in one)
    where = f" of the {' and '.join(named)} part{'s' if len(runs) > 1 else ''}" if named else ""
    if split.get("method") == OUT_OF_FOLD:
        where = f" {OUT_OF_FOLD}" + (", each scored by one run alone" if split.get("runs_per_image") == [1] else "")
    where = " of a whole data set" if [*named] == ["whole"] else where
    if None in trained:
        return f"{where}, which it may have been trained on"
    number = min(sum(one for one in trained if one), every)
    told = f"up to {min(number, count)}" if number < every and count < every else f"{min(number, count)}"
    return where + (f", {told} of them TRAINING images" if number else "")


def _members(model: str, weights: Sequence[float]) -> list[tuple[str, float]] | None:
    """Weights' fingerprints of a model's runs with their shares in it, in one order; None if they do not fit."""
    prints = model.split("+")
    if len(prints) != len(weights):
        return None
    return sorted((one, round(weight, 6)) for one, weight in zip(prints, weights, strict=True))

"""What every exported form says of its network: weights, settings, scores, and that it is no medical device."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpneumo import __version__
from jaxpneumo.data.splits import words as split_words
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.predict.onnx_session import threshold_inputs
from jaxpneumo.predict.trained_on import images_in_training
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run import tta
from jaxpneumo.run.config import Config

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.predict.infer import Predictor

USE = "Research use only; not a medical device."
SETTINGS = (
    *("size", "tta"),
    *saved_thresholds.NAMES,
    *saved_thresholds.NAMES_OF_TRIPLET,
    saved_thresholds.CLASSIFIER,
)
# The scores that are told beside the network; a run's `summary.json` has more.
SCORES = ("dice", "iou", "dice_positive", "sensitivity", "specificity")


def describe(predictor: "Predictor", summary: dict[str, Any] | None) -> dict[str, Any]:
    """What is said of a network, JSON-ready.

    Args:
      predictor: the result of `load_predictor`, with the settings to export.
      summary: the result of `read_summary`.

    Returns:
      "program", "note", "synthetic"; "model", the fingerprint of the weights; "run", "encoder", "classifier"; the
      settings, where they are set; "thresholds", as a model takes them beside the image; "evaluation" with data,
      split, number of training images among them (None: unknown), baseline, scores and the settings that these were
      made with; "bands", the limits of the certainty, None
      without any; and "config", the run's with these settings and without folders of the machine.
    """
    settings = {name: getattr(predictor.settings, name) for name in SETTINGS}
    thresholds = threshold_inputs(predictor.settings, predictor.config.model.classifier)
    bands = bands_of(predictor)
    own = replace(predictor.settings, batch_size=predictor.config.predict.batch_size)
    config = replace(predictor.config, predict=own)
    return {
        "program": f"jaxpneumo {__version__}",
        "note": f"{USE} {SYNTHETIC_NOTE}" if predictor.synthetic else USE,
        "synthetic": predictor.synthetic,
        "model": predictor.model_id,
        "run": predictor.workdir.resolve().name,
        "encoder": predictor.config.model.encoder,
        "classifier": predictor.config.model.classifier,
        **{name: value for name, value in settings.items() if value is not None},
        "thresholds": {name: value.item() for name, value in thresholds.items()},
        "evaluation": summary and _evaluation(summary),
        "bands": asdict(bands) if bands.calibrated else None,
        "config": without_paths(config).to_dict(),
    }


def without_paths(config: Config) -> Config:
    """The config without folders of the machine: of a path only its last name is left."""

    def name(path: str) -> str:
        return os.path.basename(path.rstrip("/"))

    return replace(
        config,
        init_from=name(config.init_from),
        data=replace(config.data, directory=name(config.data.directory), split=name(config.data.split)),
        model=replace(config.model, pretrained=name(config.model.pretrained)),
        stages=tuple(replace(stage, start_from=name(stage.start_from)) for stage in config.stages),
        predict=replace(config.predict, input=name(config.predict.input)),
    )


def texts(description: dict[str, Any]) -> dict[str, str]:
    """The description as name -> text, for formats that hold nothing else; what is no text is JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}


def read_summary(workdir: Path, model: str) -> dict[str, Any] | None:
    """The evaluation of a run; None if there is none, or if it is of other weights.

    Raises:
      InputError: the file is damaged.
    """
    path = workdir / "evaluation/summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    try:
        return summary if summary["run"]["model"] == model and summary["scores"] and summary["intervals"] else None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no evaluation of this program. Run `jaxpneumo evaluate` again.") from error


def with_interval(summary: dict[str, Any], name: str) -> tuple[float | None, tuple[float, float] | None]:
    """A score in the run's own mode, and its 95 % interval if it has one."""
    mode = summary["run"]["mode"]
    interval = summary["intervals"]["scores"][mode].get(name)
    return summary["scores"][mode].get(name), interval and tuple(interval)


def settings_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The settings that an evaluation was made with, as a description has them; and "gate", where a run was one."""
    settings = {
        "size": summary["input_size"],
        "tta": tta.recorded(summary["tta"]),
        "threshold": summary["threshold"],
        "removal_threshold": summary["removal"]["threshold"],
        "removal_rule": summary["removal"]["rule"],
    }
    if top := summary.get("top"):
        settings |= {"top_threshold": top["threshold"], "top_area": top["area"]}
    if classifier := summary.get("classifier"):
        settings[saved_thresholds.CLASSIFIER] = classifier["threshold"]
    return settings | ({"gate": summary["gate"]["workdir"]} if summary.get("gate") else {})


def was_evaluated(description: dict[str, Any]) -> bool:
    """Whether the scores of a description were made with the settings that it has."""
    own = {name: description[name] for name in SETTINGS if description.get(name) is not None}
    return bool(description["evaluation"]) and description["evaluation"]["settings"] == own


def are_of_new_images(description: dict[str, Any]) -> bool:
    """Whether the scores of a description are of images that the run is known not to have been trained on."""
    return bool(description["evaluation"]) and description["evaluation"]["images_in_training"] == 0


def _evaluation(summary: dict[str, Any]) -> dict[str, Any]:
    data = summary["data"]
    return {
        "data": data["directory"],
        "synthetic": data["synthetic"],
        "split": split_words(summary["split"]),
        "part": summary["split"]["part"],
        "n_images": summary["n_images"],
        "n_positive": summary["n_positive"],
        "images_in_training": images_in_training(summary),
        "mode": summary["run"]["mode"],
        "settings": settings_of(summary),
        "all_empty_dice": summary["all_empty"]["dice"],
        **{name: with_interval(summary, name) for name in SCORES},
    }

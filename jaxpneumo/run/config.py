"""What a config must hold, what its values may be, and when two configs are of the same run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxpneumo.process import places, ranges
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import SWITCH, TEXT, Words, number, whole

STAGES = ("stage1", "stage2")

# Every value a config has beside its stages', and what it may be.
VALUES = {
    "seed": ranges.SEED,
    "init_from": TEXT,
    "data.directory": TEXT,
    "data.split": TEXT,
    "data.validation_fraction": ranges.FRACTION,
    "data.split_seed": ranges.SEED,
    "data.fold": whole(0, 999),
    "data.workers": ranges.WORKERS,
    "data.resident": Words(("auto", "on", "off")),
    "model.encoder": Words(("resnet34_preact", "resnet34")),
    "model.dtype": Words(("float32", "bfloat16")),
    "model.input_convolution": SWITCH,
    "model.momentum": number(0, 1, below_high=True, word="None"),
    "model.pretrained": TEXT,
    "model.depths": ranges.DEPTHS,
    "model.width": ranges.WIDTH,
    "model.remat": SWITCH,
    "loss.dice": Words(("image", "batch")),
    "augment.engine": Words(("device", "host")),
    "augment.flip": ranges.PROBABILITY,
    "augment.intensity": ranges.PROBABILITY,
    "augment.distortion": ranges.PROBABILITY,
    "augment.crop": ranges.PROBABILITY,
    "predict.size": ranges.SIDE,
    "predict.batch_size": ranges.BATCH,
    "predict.tta": SWITCH,
    "predict.threshold": ranges.PROBABILITY,
    "predict.removal_threshold": ranges.AREA,
    "predict.removal_rule": Words(("image", "component")),
    "predict.input": TEXT,
    "predict.overlays": whole(0, 10**9),
}
# Values that only some configs have.
OPTIONAL = {
    "data.synthetic.train": ranges.COUNT,
    "data.synthetic.test": ranges.COUNT,
    "data.synthetic.positive_fraction": ranges.PROBABILITY,
    "data.synthetic.area_scale": ranges.AREA_SCALE,
    "predict.top_threshold": ranges.PROBABILITY,
    "predict.top_area": ranges.AREA,
}
EPOCHS = whole(1, 10_000)
STAGE_VALUES = {
    "size": ranges.SIDE,
    "batch_size": ranges.BATCH,
    "epochs": EPOCHS,
    "schedule": Words(("cosine", "plateau")),
    "learning_rate": number(0, 1, above_low=True),
    "swa_epochs": whole(0, EPOCHS.high),
}
SCHEDULE_VALUES = {
    "cosine": {"final_learning_rate": number(0, 1)},
    "plateau": {"plateau_factor": number(0, 1, above_low=True, below_high=True), "plateau_patience": EPOCHS},
}

# All of these under their full names.
ALLOWED = VALUES | OPTIONAL
for _stage in STAGES:
    for _kinds in (STAGE_VALUES, *SCHEDULE_VALUES.values()):
        ALLOWED |= {f"{_stage}.{_name}": _kind for _name, _kind in _kinds.items()}

# Where the data lie, how they are read and what is predicted do not change what is trained.
_FREE = ("data.directory", "data.workers", "data.resident", "data.synthetic", "predict.")


def stages_of(config: ConfigDict) -> list[str]:
    """The stages that a config trains, in order."""
    return [stage for stage in STAGES if stage in config]


def trained_stages(config: ConfigDict) -> list[str]:
    """The stages that a run of it trains itself: not stage1 where another run's result takes its place."""
    stages = stages_of(config)
    return stages[1:] if config.init_from and "stage2" in stages else stages


def synthetic_folders(config: ConfigDict) -> dict[str, Path]:
    """Where a config with `data.synthetic` has its DICOM files: {"train", "test"}, beside the prepared data set."""
    directory = Path(config.data.directory)
    return {part: directory.with_name(f"{directory.name}-{part}") for part in ("train", "test")}


def check_config(config: ConfigDict) -> None:
    """Raises InputError, naming all of them, for values that a config lacks or that cannot be."""
    values = _flat(config.to_dict())
    problems = []
    for key in VALUES:
        section = key.split(".")[0]
        missing = section if section not in config else key if key not in values else ""
        if missing and f"{missing} is missing" not in problems:
            problems.append(f"{missing} is missing")
    if not stages_of(config):
        problems.append("stage1 is missing")
    for stage in stages_of(config):
        of_schedule = SCHEDULE_VALUES.get(values.get(f"{stage}.schedule"), ())
        names = (f"{stage}.{name}" for name in (*STAGE_VALUES, *of_schedule))
        problems += [f"{name} is missing" for name in names if name not in values]
    problems += [f"--config.{problem}" for problem in wrong_values(values)]
    if problems:
        raise InputError(
            "the config cannot be used: " + "; ".join(problems) + ". configs/exp5.py is a complete example."
        )


def wrong_values(values: dict[str, Any]) -> Iterator[str]:
    """What cannot be of the values there are, flat ("stage1.size"), in words; what is missing is passed over."""
    for key, kind in ALLOWED.items():
        if key in values and not kind.allows(values[key]):
            yield f"{key} must be {kind}, not {values[key]!r}"
    for stage in STAGES:
        averaged, epochs = (values.get(f"{stage}.{name}") for name in ("swa_epochs", "epochs"))
        if isinstance(averaged, int) and isinstance(epochs, int) and 1 <= epochs < averaged:
            yield f"{stage}.swa_epochs must be at most {stage}.epochs, {epochs}, not {averaged}"


def check_paths(config: ConfigDict) -> None:
    """Raises InputError for files and folders that a config names and that are not there."""
    if (source := config.init_from) and not Path(source).is_dir():
        raise InputError(f"--config.init_from={source} is not a folder. Give the folder of a finished run.")
    if (weights := config.model.pretrained) and not Path(weights).is_file():
        raise InputError(
            f"--config.model.pretrained={weights}: no such file. docs/data.md says where ImageNet weights come from."
        )
    if not config.data.directory:
        raise InputError("--config.data.directory is empty. Give the folder of a prepared data set.")
    if "synthetic" in config.data and not Path(config.data.directory).is_dir():
        places.check_folder(Path(config.data.directory).parent, "--config.data.directory")


def resolve_paths(config: ConfigDict) -> None:
    """Gives the config's paths their full names where they have none of their own, as `.`, or begin with `~`."""
    data = (config.data, "directory"), (config.data, "split")
    for section, name in (*data, (config, "init_from"), (config.model, "pretrained"), (config.predict, "input")):
        value = section[name]
        if value.startswith("~") or (value and Path(value).name in ("", "..")):
            section[name] = str(places.path(value))


def why_refused(error: Exception) -> str:
    """What a config file or ml_collections said against a value, in one line without traceback and quotation."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if error.args else str(error)
    given = re.match(r"flag (--config\.([\w.]+)=.*?): ", text, re.DOTALL)
    if given and given[2] in ALLOWED:
        return f"{given[1]} is not {ALLOWED[given[2]]}."
    return text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())


def read_config(workdir: Path | str) -> ConfigDict:
    """The config a run was started with.

    Raises:
      InputError: the folder is no run, or its config has values that cannot be.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{workdir} is not a run (no config.json). Give the --workdir of a training; train one with "
            "`python -m jaxpneumo.main --config=configs/quickstart.py`."
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not the config of a run. Restore it, or train again.")
    if problems := list(wrong_values(_flat(values))):
        raise InputError(f"{path} cannot be used: {'; '.join(problems)}. Restore it, or train again.")
    return ConfigDict(values)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Names of the values in which two configs would train differently."""
    a, b = _flat(old.to_dict()), _flat(new.to_dict())
    return [key for key in sorted(a.keys() | b.keys()) if not key.startswith(_FREE) and a.get(key) != b.get(key)]


def _flat(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(item) if isinstance(item, tuple) else item
    return flat

"""What a config must hold, and when two configs are of the same run."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxpneumo.errors import InputError
from jaxpneumo.files import read_json

STAGES = ("stage1", "stage2")

_REQUIRED = {
    "": ("seed", "init_from", "data", "model", "loss", "augment", "predict"),
    "data": ("directory", "split", "validation_fraction", "split_seed", "fold", "workers", "resident"),
    "model": ("encoder", "dtype", "input_convolution", "momentum", "pretrained", "depths", "width", "remat"),
    "loss": ("dice",),
    "augment": ("engine", "flip", "intensity", "distortion", "crop"),
    "predict": (*("size", "batch_size", "tta", "threshold", "removal_threshold", "removal_rule", "input", "overlays"),),
}
_REQUIRED_OF_STAGE = ("size", "batch_size", "epochs", "schedule", "learning_rate", "swa_epochs")
_REQUIRED_OF_SCHEDULE = {
    "cosine": ("final_learning_rate",),
    "plateau": ("plateau_factor", "plateau_patience"),
}

# Where the data lie, how they are read and what is predicted do not change what is trained.
_FREE = ("data.directory", "data.workers", "data.resident", "data.synthetic", "predict.")


def stages_of(config: ConfigDict) -> list[str]:
    """The stages that a config trains, in order."""
    return [stage for stage in STAGES if stage in config]


def trained_stages(config: ConfigDict) -> list[str]:
    """The stages that a run of it trains itself: not stage1 where another run's result takes its place."""
    stages = stages_of(config)
    return stages[1:] if config.init_from and "stage2" in stages else stages


def check_config(config: ConfigDict) -> None:
    """Raises InputError, naming all of them, for values that a config lacks or that cannot be."""
    problems = [
        f"{section}.{name}".lstrip(".") + " is missing"
        for section, names in _REQUIRED.items()
        for name in names
        if section in ("", *config) and name not in (config[section] if section else config)
    ]
    if not stages_of(config):
        problems.append("stage1 is missing")
    for stage in stages_of(config):
        schedule = config[stage].get("schedule", "cosine")
        if schedule not in _REQUIRED_OF_SCHEDULE:
            problems.append(f'{stage}.schedule must be "cosine" or "plateau", not {schedule!r}')
        names = _REQUIRED_OF_STAGE + _REQUIRED_OF_SCHEDULE.get(schedule, ())
        problems += [f"{stage}.{name} is missing" for name in names if name not in config[stage]]
        problems += [
            f"{stage}.{name} must be at least 1, not {config[stage][name]}"
            for name in ("size", "batch_size", "epochs")
            if config[stage].get(name, 1) < 1
        ]
    if not problems and config.loss.dice not in ("image", "batch"):
        problems.append(f'loss.dice must be "image" or "batch", not {config.loss.dice!r}')
    if not problems and config.data.resident not in ("auto", "on", "off"):
        problems.append(f'data.resident must be "auto", "on" or "off", not {config.data.resident!r}')
    if not problems and config.augment.engine not in ("device", "host"):
        problems.append(f'augment.engine must be "device" or "host", not {config.augment.engine!r}')
    if problems:
        raise InputError(
            "the config cannot be used: " + "; ".join(problems) + ". configs/exp5.py is a complete example."
        )


def read_config(workdir: Path | str) -> ConfigDict:
    """The config a run was started with. Raises InputError when the folder is no run."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{workdir} is not a run (no config.json). Give the --workdir of a training; train one with "
            "`python -m jaxpneumo.main --config=configs/quickstart.py`."
        )
    return ConfigDict(read_json(path))


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

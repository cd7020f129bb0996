"""A run's config: frozen dataclasses, made once by `typed`, which checks every value.

The files in configs/ and a run's config.json hold the same values as nested dictionaries. A key that came later has
its default here, which is what the program did before it: configs and runs of every earlier version can be used.
"""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from jaxpneumo.process import places
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run import tta
from jaxpneumo.run.config_values import (
    LOSS_WEIGHTS,
    OPTIONAL,
    SCHEDULE_VALUES,
    STAGE_VALUES,
    STAGES,
    VALUES,
    wrong_values,
)

# Where the data lie, how they are read, how often a state is saved and what is predicted do not change what is trained.
# The probability threshold does where the best epoch is the result: IoU and Dice of the epochs are at that threshold.
_FREE = ("checkpoint_seconds", "data.directory", "data.workers", "data.resident", "data.synthetic", "predict.")
_SYNTHETIC = "data.synthetic."
# What of the model makes another network, with other weights.
_NETWORK = ("encoder", "input_convolution", "depths", "width", "classifier", "attention", "hypercolumns")


@dataclass(frozen=True)
class Synthetic:
    """Synthetic radiographs to draw: how many, and what they show."""

    train: int
    test: int
    positive_fraction: float
    area_scale: float


@dataclass(frozen=True)
class Data:
    """The prepared data set, its split, and how it is read."""

    directory: str
    split: str
    validation_fraction: float
    split_seed: int
    fold: int
    workers: int
    resident: str
    synthetic: Synthetic | None


@dataclass(frozen=True)
class Model:
    """The network, see `model.unet.UNet`. `momentum` None stands for the encoder's own."""

    encoder: str
    dtype: str
    input_convolution: bool
    momentum: float | None
    pretrained: str
    depths: tuple[int, ...]
    width: int
    remat: bool
    classifier: bool = False
    attention: str = "none"
    hypercolumns: bool = False


@dataclass(frozen=True)
class Loss:
    """The loss: a sum of parts with weights (`train.losses`).

    Attributes:
      dice: soft Dice of all pixels of the "batch", of each "image", or of each image with a finding ("positive").
      smooth: pixels added to both sides of the Dice's fraction.
      bce_weight, dice_weight, focal_weight, lovasz_weight: weights of the parts.
      focal_gamma: exponent of the focal loss.
      lovasz: "hinge", or "symmetric" for the mean of the hinges of finding and background.
      classification: weight of the cross-entropy of the image's label, for a network with a classifier.
      border: cross-entropy and focal loss soften the mask's borders over this many pixels to each side.
    """

    dice: str
    smooth: float = 1.0
    bce_weight: float = 1.0
    dice_weight: float = 1.0
    focal_weight: float = 0.0
    lovasz_weight: float = 0.0
    focal_gamma: float = 2.0
    lovasz: str = "hinge"
    border: int = 0
    classification: float = 1.0


@dataclass(frozen=True)
class Augment:
    """The engine, and the probabilities of the groups A1 to A4."""

    engine: str
    flip: float
    intensity: float
    distortion: float
    crop: float


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
      name: "stage1" to "stage9".
      size, batch_size, epochs: of its images, its global batches and its passes.
      schedule: "cosine" down to `final_learning_rate`, or "plateau" with its factor and patience.
      learning_rate: the highest.
      swa_epochs: the last epochs whose weights are averaged; 0 takes the best epoch's.
      warmup_epochs: the first epochs, over which the rate rises to `learning_rate` in equal steps.
      frozen_encoder_epochs: the first epochs, in which the encoder's parameters stay as they are.
      positive_share: share of images with a finding in the first epoch; None draws all images alike.
      final_positive_share: share in the last epoch, in between along a line; None keeps the first.
      start_from: folder of another run, whose result the stage starts from; "" for that of the stage before.
      bce_weight, dice_weight, focal_weight, lovasz_weight: instead of those of `Loss`; None keeps them.
    """

    name: str
    size: int
    batch_size: int
    epochs: int
    schedule: str
    learning_rate: float
    swa_epochs: int
    final_learning_rate: float = 0.0
    plateau_factor: float = 0.1
    plateau_patience: int = 1
    warmup_epochs: int = 0
    frozen_encoder_epochs: int = 0
    positive_share: float | None = None
    final_positive_share: float | None = None
    start_from: str = ""
    bce_weight: float | None = None
    dice_weight: float | None = None
    focal_weight: float | None = None
    lovasz_weight: float | None = None

    def loss(self, of_run: Loss) -> Loss:
        """The stage's loss: the run's, with the stage's own weights."""
        own = {name: getattr(self, name) for name in LOSS_WEIGHTS}
        return replace(of_run, **{name: weight for name, weight in own.items() if weight is not None})


@dataclass(frozen=True)
class Predict:
    """The settings of a prediction.

    Attributes:
      size, batch_size: of what the network takes.
      tta: views to average over, in the form that `run.tta` records: True is the image and its mirror image.
      threshold: of the probability.
      removal_threshold: smallest area, in pixels of a 1024x1024 image; `removal_rule` says of what.
      input: folder to predict after training; "" for none.
      overlays: pictures to write at most.
      top_threshold, top_area: of the triplet rule (`jaxpneumo thresholds`); None without it.
      classifier_threshold: images whose classifier says less stay empty; None: it empties none.
    """

    size: int
    batch_size: int
    tta: bool | str
    threshold: float
    removal_threshold: int
    removal_rule: str = "image"
    input: str = ""
    overlays: int = 0
    top_threshold: float | None = None
    top_area: int | None = None
    classifier_threshold: float | None = None


@dataclass(frozen=True)
class Config:
    """Everything that a run is started with; the files in configs/ say what each value means.

    `checkpoint_seconds`: from one checkpoint of a stage to the next, at least; 0 saves every epoch.
    """

    seed: int
    init_from: str
    checkpoint_seconds: float
    data: Data
    model: Model
    loss: Loss
    augment: Augment
    stages: tuple[Stage, ...]
    predict: Predict

    def trained_stages(self) -> tuple[Stage, ...]:
        """The stages that a run trains itself: not stage1 where another run's result takes its place."""
        return self.stages[1:] if self.init_from and len(self.stages) > 1 else self.stages

    def to_dict(self) -> dict[str, Any]:
        """The nested dictionary that `typed` takes and that config.json holds."""
        values = asdict(self)
        for stage in values.pop("stages"):
            names = (*STAGE_VALUES, *SCHEDULE_VALUES[stage["schedule"]])
            values[stage["name"]] = {name: stage[name] for name in names}
        return _as_saved(values)


# Keys that came later, with what earlier versions did.
LATER: dict[str, Any] = {
    # Earlier versions saved every epoch. The bits are the same.
    "checkpoint_seconds": 120.0,
    "data.fold": 0,
    "data.resident": "auto",
    "model.remat": False,
    "model.classifier": False,
    "model.attention": "none",
    "model.hypercolumns": False,
    "augment.engine": "host",
    "predict.classifier_threshold": None,
    **{f"loss.{field.name}": field.default for field in fields(Loss) if field.name != "dice"},
}
STAGE_LATER = {
    field.name: field.default for field in fields(Stage) if field.name in STAGE_VALUES and field.default is not MISSING
}
# Keys that belong to one schedule or one rule. A config has those that it uses; a flag can set each of them.
SELDOM = {"predict.top_threshold": float, "predict.top_area": int}
for _stage in STAGES:
    for _name in (name for names in SCHEDULE_VALUES.values() for name in names):
        SELDOM[f"{_stage}.{_name}"] = int if _name == "plateau_patience" else float


def typed(values: dict[str, Any]) -> Config:
    """The config of nested dictionaries, such as the files in configs/ give. Keys that no config has are left out.

    Raises InputError, naming all of them, for values that are missing or that cannot be.
    """
    if problems := _problems(values):
        raise InputError(
            "the config cannot be used: " + "; ".join(problems) + ". configs/exp5.py is a complete example."
        )
    return _config(values)


def synthetic_folders(config: Config) -> dict[str, Path]:
    """Where a config with `data.synthetic` has its DICOM files: {"train", "test"}, beside the prepared data set."""
    directory = Path(config.data.directory)
    return {part: directory.with_name(f"{directory.name}-{part}") for part in ("train", "test")}


def _problems(values: dict[str, Any]) -> list[str]:
    """What is missing and what cannot be, in words."""
    flat = _complete(values)
    of_synthetic = [key for key in OPTIONAL if key.startswith(_SYNTHETIC)] if _is_synthetic(flat) else []
    problems = []
    for key in [*VALUES, *of_synthetic]:
        section = key.split(".")[0]
        missing = key if section in values else section
        if missing not in flat and f"{missing} is missing" not in problems:
            problems.append(f"{missing} is missing")
    stages = [name for name in STAGES if name in values]
    if not stages:
        problems.append("stage1 is missing")
    for stage in stages:
        of_schedule = SCHEDULE_VALUES.get(str(flat.get(f"{stage}.schedule")), ())
        names = [f"{stage}.{name}" for name in (*STAGE_VALUES, *of_schedule) if name not in STAGE_LATER]
        problems += [f"{name} is missing" for name in names if name not in flat]
    return problems + [f"--config.{problem}" for problem in wrong_values(flat)]


def _is_synthetic(flat: dict[str, Any]) -> bool:
    return any(key.startswith(_SYNTHETIC) for key in flat)


def _config(values: dict[str, Any]) -> Config:
    """The dataclasses of values that have no problems."""
    flat = _complete(values)

    def section(kind: type, prefix: str, **given: Any) -> Any:
        names = (field.name for field in fields(kind))
        return kind(**{name: flat[prefix + name] for name in names if prefix + name in flat} | given)

    synthetic = section(Synthetic, _SYNTHETIC) if _is_synthetic(flat) else None
    flat["predict.tta"] = tta.recorded(flat["predict.tta"])
    flat["model.depths"] = tuple(flat["model.depths"])
    for key in ("data.directory", "data.split", "init_from", "model.pretrained", "predict.input"):
        flat[key] = _full_path(flat[key])
    for key in flat:
        if key.endswith(".start_from"):
            flat[key] = _full_path(flat[key])
    return Config(
        seed=flat["seed"],
        init_from=flat["init_from"],
        checkpoint_seconds=flat["checkpoint_seconds"],
        stages=tuple(section(Stage, f"{name}.", name=name) for name in STAGES if name in values),
        data=section(Data, "data.", synthetic=synthetic),
        model=section(Model, "model."),
        loss=section(Loss, "loss."),
        augment=section(Augment, "augment."),
        predict=section(Predict, "predict."),
    )


def _full_path(text: str) -> str:
    """A path's full name where it has none of its own, as `.`, or begins with `~`."""
    needs_one = text.startswith("~") or (text and Path(text).name in ("", ".."))
    return str(places.path(text)) if needs_one else text


def check_paths(config: Config) -> None:
    """Raises InputError for what a config names and is not there, and where a run to start from has another network."""
    starts = {"init_from": config.init_from} | {f"{stage.name}.start_from": stage.start_from for stage in config.stages}
    for name, source in starts.items():
        if source and not Path(source).is_dir():
            raise InputError(f"--config.{name}={source} is not a folder. Give the folder of a finished run.")
        if source:
            _check_network(config.model, source, f"--config.{name}={source}")
    if (weights := config.model.pretrained) and not Path(weights).is_file():
        raise InputError(
            f"--config.model.pretrained={weights}: no such file. docs/data.md says where ImageNet weights come from."
        )
    if not config.data.directory:
        raise InputError("--config.data.directory is empty. Give the folder of a prepared data set.")
    if config.data.synthetic and not Path(config.data.directory).is_dir():
        places.check_folder(Path(config.data.directory).parent, "--config.data.directory")


def _check_network(model: Model, source: str, flag: str) -> None:
    """Raises InputError, naming `flag` and each difference, unless a run has the network of `model`."""
    other = read_config(source).model
    pairs = {name: (getattr(other, name), getattr(model, name)) for name in _NETWORK}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different:
        told = "; ".join(f"model.{name} is {there} there and {here} here" for name, (there, here) in different.items())
        raise InputError(f"{flag} is a run of another network: {told}. Give a run of this network, or make them equal.")


def read_config(workdir: Path | str) -> Config:
    """The config a run was started with.

    Raises:
      InputError: the folder is no run, or its config lacks values or has some that cannot be.
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
    if problems := [problem.removeprefix("--config.") for problem in _problems(values)]:
        raise InputError(f"{path} cannot be used: {'; '.join(problems)}. Restore it, or train again.")
    return _config(values)


def differences(old: Config, new: Config) -> list[str]:
    """Names of the values in which two configs would train differently."""
    a, b = _flat(old.to_dict()), _flat(new.to_dict())
    chosen = any(stage.swa_epochs == 0 for stage in new.trained_stages())
    free = {key for key in a.keys() | b.keys() if key.startswith(_FREE)} - ({"predict.threshold"} if chosen else set())
    return [key for key in sorted(a.keys() | b.keys()) if key not in free and a.get(key) != b.get(key)]


def _as_saved(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values as every config.json has them: in the order of their names, without those that are not set."""
    saved = {}
    for key, value in sorted(values.items()):
        if isinstance(value, dict):
            saved[key] = _as_saved(value)
        elif value is not None or key == "momentum":
            saved[key] = list(value) if isinstance(value, tuple) else value
    return saved


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """All values under their full names; those of LATER where they are missing, and no SELDOM one that no flag set."""
    flat = {key: value for key, value in _flat(values).items() if value is not None or key not in SELDOM}
    return LATER | flat


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(item) if isinstance(item, tuple) else item
    return flat

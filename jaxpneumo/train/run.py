"""A run: its folder, its data and split, and its stages one after the other."""

import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxpneumo import places, run_report
from jaxpneumo.data import dataset, splits, synthetic
from jaxpneumo.data.prepare import prepare
from jaxpneumo.errors import InputError
from jaxpneumo.files import write_json
from jaxpneumo.model import pretrained
from jaxpneumo.train import checkpoint
from jaxpneumo.train.config import (
    check_config,
    check_paths,
    differences,
    read_config,
    resolve_paths,
    stages_of,
    synthetic_folders,
)
from jaxpneumo.train.feed import StageData
from jaxpneumo.train.loop import make_model, train_stage
from jaxpneumo.train.provenance import record_start
from jaxpneumo.train.sharding import check_batch_size, is_first, make_mesh, replicated
from jaxpneumo.train.state import initialise

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains all stages of a config, or what an earlier start of the same command has left to do.

    Several processes (`sharding.start_processes`) all call this; the folder must be one that all of them see.

    Args:
      config: as the files in configs/ return it.
      workdir: the run's folder: config.json, splits.json and a folder a stage.

    Returns:
      The last stage's {"params", "batch_stats"}.

    Raises:
      InputError: config, data or folder cannot be used; nothing has been trained then.
      TrainingError: the loss became infinite or not a number, or a checkpoint cannot be written.
      Stopped: SIGTERM came; the state is saved.
    """
    check_config(config)
    resumed = (workdir / "config.json").is_file()
    if resumed:
        _check_same(config, workdir)
    else:
        splits.check_name(config.data.split, "--config.data.split")
        splits.check(config.data.split, config.data.validation_fraction)
    resolve_paths(config)
    check_paths(config)
    places.check_folder(workdir, "--workdir")
    for section in stages_of(config):
        check_batch_size(config[section].batch_size, jax.device_count(), section)
    run_report.process(jax.process_index())
    check_batch_size(config.predict.batch_size, jax.local_device_count(), "predict")
    if is_first():
        make_synthetic_data(config)
    checkpoint.meet("data")
    stages = stages_of(config)
    for stage in stages:
        dataset.open_arrays(config.data.directory, config[stage].size)
    dataset.open_arrays(config.data.directory, config.predict.size)
    data, folds = _read_split(config, workdir / "splits.json" if resumed else None)
    variables = _first_variables(config)
    # Only now: a start that was refused leaves nothing behind that stands in the next one's way.
    checkpoint.meet("checks")
    if is_first():
        if not resumed:
            _write_split(config, workdir / "splits.json", data, folds)
        write_json(workdir / "config.json", config.to_dict())
        record_start(workdir)

    if config.init_from and "stage2" in stages:
        stages.remove("stage1")
    for stage in stages:
        if checkpoint.final_directory(workdir / stage).is_dir():
            run_report.skipped(f"training of {stage}, complete before")
        variables = train_stage(config, stage, data, workdir / stage, variables)
        run_report.wrote(checkpoint.final_directory(workdir / stage))
    return variables


def make_synthetic_data(config: ConfigDict) -> None:
    """Makes the data of a config that has `data.synthetic`, unless they are there already.

    The radiographs are written as DICOM files with their label csv and then prepared, as real ones are:
    DIRECTORY-train and DIRECTORY-test hold the files, DIRECTORY the prepared training data.
    """
    if "synthetic" not in config.data:
        return
    directory = Path(config.data.directory)
    settings = config.data.synthetic
    folders = synthetic_folders(config)
    for seed, (part, folder) in enumerate(folders.items()):
        if not folder.is_dir():
            logger.info("Making %d synthetic radiographs in %s", settings[part], folder)
            synthetic.write(
                folder,
                settings[part],
                seed=seed,
                positive_fraction=settings.positive_fraction,
                area_scale=settings.area_scale,
            )
    if not directory.is_dir():
        sizes = {config[stage].size for stage in stages_of(config)} | {config.predict.size}
        source = folders["train"]
        prepare(source, source / "labels.csv", directory, tuple(sizes), source / "patients.csv")


def _check_same(config: ConfigDict, workdir: Path) -> None:
    changed = differences(read_config(workdir), config)
    if changed:
        raise InputError(
            f"{workdir} holds a run of another config; they differ in {', '.join(changed)}. "
            "Choose another --workdir, or repeat the first start's command to go on with it."
        )


def _read_split(config: ConfigDict, own: Path | None) -> tuple[StageData, dict[str, int]]:
    """The rows of the run's own splits file, or of the config's split; and of folds which one, of how many."""
    settings = config.data
    index = dataset.read_index(settings.directory)
    split, fold = (own, 0) if own else (settings.split, settings.fold)
    train, validation, description = splits.split_rows(
        index, split, settings.validation_fraction, settings.split_seed, fold
    )
    if not len(train) or not len(validation):
        raise InputError(
            f"data.split={settings.split!r} leaves {len(train)} training and {len(validation)} validation images; "
            "a run needs both. Set data.validation_fraction between 0 and 1, or choose another split."
        )
    shared = description["validation_images_with_patient_in_training"]
    folds = {key: description[key] for key in ("fold", "folds") if key in description}
    logger.info(
        "%d training and %d validation images (split: %s%s)%s",
        len(train),
        len(validation),
        description["method"],
        f", fold {folds['fold']} of 0 to {folds['folds'] - 1}" if folds else "",
        f"; {shared} validation images have their patient in training" if shared else "",
    )
    return StageData(settings.directory, train, validation), folds


def _write_split(config: ConfigDict, path: Path, data: StageData, folds: dict[str, int]) -> None:
    """Keeps the split with the run, for its next start and for its evaluation."""
    settings = config.data
    splits.write_splits(
        path,
        dataset.read_index(settings.directory).image_id,
        data.train_rows,
        data.validation_rows,
        settings.split,
        settings.validation_fraction,
        settings.split_seed,
        **folds,
    )


def _first_variables(config: ConfigDict) -> dict[str, Any]:
    """Variables the first stage starts from: another run's result, pretrained, or fresh ones."""
    variables = initialise(make_model(config), config.seed)
    if config.init_from:
        source = Path(config.init_from)
        stage = (
            "stage1" if checkpoint.final_directory(source / "stage1").is_dir() else stages_of(read_config(source))[-1]
        )
        return checkpoint.restore_final(source / stage, variables, replicated(make_mesh()))[0]
    if config.model.pretrained:
        return pretrained.load(config.model.pretrained, variables)
    return variables

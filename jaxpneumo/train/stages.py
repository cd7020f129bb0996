"""A run: its folder, its data and split, and its stages in order."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpneumo.data import dataset, splits
from jaxpneumo.data.prepare import prepare
from jaxpneumo.process import places, run_report
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import InputError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Config, check_paths, synthetic_folders
from jaxpneumo.run.folders import final_directory
from jaxpneumo.run.network import first_variables, stage_result
from jaxpneumo.run.provenance import record_start
from jaxpneumo.run.sharding import check_batch_size, is_first
from jaxpneumo.synthetic import radiographs
from jaxpneumo.train import checks
from jaxpneumo.train.feed import StageData, training_order
from jaxpneumo.train.loop import augmentations, compile_stages, train_stage

logger = logging.getLogger(__name__)


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains all stages of a config, or the rest of them if an earlier start of the same command was stopped.

    Several processes (`sharding.start_processes`) all call this; the folder must be one that all of them see.

    Args:
      config: of `run.config.typed`.
      workdir: the run's folder: config.json, splits.json and a folder a stage.

    Returns:
      The last stage's {"params", "batch_stats"}.

    Raises:
      InputError: config, data or folder cannot be used; nothing has been trained then.
      TrainingError: the loss became infinite or not a number, or a checkpoint cannot be written.
      Stopped: SIGTERM came; the state is saved.
    """
    resumed = checks.check_folder(workdir, config)
    if not resumed:
        splits.check_name(config.data.split, "--config.data.split")
        splits.check(config.data.split, config.data.validation_fraction)
    check_paths(config)
    places.check_folder(workdir, "--workdir")
    for stage in config.stages:
        check_batch_size(stage.batch_size, jax.device_count(), stage.name)
    run_report.process(jax.process_index())
    check_batch_size(config.predict.batch_size, jax.local_device_count(), "predict")
    if is_first():
        make_synthetic_data(config)
    checkpoint.wait_for_all_processes("data")
    for stage in config.stages:
        dataset.open_arrays(config.data.directory, stage.size)
        augmentations(config.augment, stage.size)
    dataset.open_arrays(config.data.directory, config.predict.size)
    if resumed:
        checks.check_data(workdir, config)
    data, split = _read_split(config, workdir / "splits.json" if resumed else None)
    for stage in config.trained_stages():
        training_order(data, stage, config.seed)
    checks.check_positives(data)
    checks.tell_lost(data, (stage.size for stage in config.trained_stages()))
    variables = first_variables(config)
    for stage in config.trained_stages():
        if stage.batch_size > (images := len(data.train_rows)):
            raise InputError(
                f"{stage.name}.batch_size={stage.batch_size} is more than the {images} training images: "
                f"use --config.{stage.name}.batch_size={images} or less."
            )
    others = [stage for stage in config.stages if stage.start_from]
    starts = {stage.name: stage_result(stage.start_from, None, variables) for stage in others}
    # Only now: a start that was refused leaves nothing behind that stands in the next one's way.
    checkpoint.wait_for_all_processes("checks")
    if is_first():
        if not resumed:
            _write_split(config, workdir / "splits.json", data, split)
        write_json(workdir / "config.json", config.to_dict())
        record_start(workdir, config)

    compile_stages(
        config, [stage for stage in config.trained_stages() if not final_directory(workdir / stage.name).is_dir()], data
    )
    for stage in config.trained_stages():
        folder = workdir / stage.name
        if final_directory(folder).is_dir():
            run_report.skipped(f"training of {stage.name}, complete before")
        variables = train_stage(config, stage, data, folder, starts.get(stage.name, variables))
        run_report.wrote(final_directory(folder))
    return variables


def make_synthetic_data(config: Config) -> None:
    """Makes the data of a config with `data.synthetic`, unless they exist.

    The radiographs are written as DICOM files with their label csv and then prepared, as real ones are:
    DIRECTORY-train and DIRECTORY-test hold the files, DIRECTORY the prepared training data.

    Raises:
      InputError: there are others already, as `checks.check_drawn` says.
    """
    settings = config.data.synthetic
    if settings is None:
        return
    directory = Path(config.data.directory)
    folders = synthetic_folders(config)
    for seed, (part, folder) in enumerate(folders.items()):
        count = settings.train if part == "train" else settings.test
        if folder.is_dir():
            checks.check_drawn(folder, count, seed, settings.positive_fraction)
        else:
            logger.info("Making %d synthetic radiographs in %s", count, folder)
            radiographs.write(
                folder,
                count,
                seed=seed,
                positive_fraction=settings.positive_fraction,
                area_scale=settings.area_scale,
            )
    if not directory.is_dir():
        sizes = {stage.size for stage in config.stages} | {config.predict.size}
        source = folders["train"]
        prepare(source, source / "labels.csv", directory, tuple(sizes), source / "patients.csv")


def _read_split(config: Config, own: Path | None) -> tuple[StageData, dict[str, Any]]:
    """The rows of the run's own splits file or of the config's split, and the description of `splits.split_rows`."""
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
    if not own:
        # Those of another run, if the file is a run's.
        description.pop(splits.SEEN, None)
        if settings.split not in splits.DRAWN:
            description = {"file": Path(settings.split).name, **description}
    logger.info("%d training and %d validation images, %s", len(train), len(validation), splits.words(description))
    if shared := description["validation_images_with_patient_in_training"]:
        logger.warning(
            "%d of %d validation images (%.1f %%) have their patient in training: their scores are too optimistic for "
            "new patients. --config.data.split=patient keeps patients together.",
            *(shared, len(validation), 100 * shared / len(validation)),
        )
    data = StageData(settings.directory, train, validation)
    if not own:
        _tell_unused_splits(config, index, validation)
        if seen := checks.seen_before(config, data):
            description[splits.SEEN] = seen
    return data, description


def _tell_unused_splits(config: Config, index: dataset.Index, validation: np.ndarray) -> None:
    """Warns where the data folder's splits.json is another split than the one that a config draws."""
    settings, path = config.data, Path(config.data.directory) / "splits.json"
    if settings.split not in splits.DRAWN or not path.is_file():
        return
    try:
        _, other, description = splits.split_rows(index, path, 0.0, 0)
    except InputError:  # `verify` finds it; this run does not need it
        return
    # `prepare` writes a random one unasked.
    unasked = settings.split == "patient" and description["method"] == "random"
    if not unasked and not np.array_equal(validation, other):
        fold = " --config.data.fold=0, or another fold" if "folds" in description else ""
        logger.warning(
            "%s (%s) is not used, as data.split is %s. To train on it, start with --config.data.split=%s%s.",
            *(path, splits.words(description), settings.split, path, fold),
        )


def _write_split(config: Config, path: Path, data: StageData, split: dict[str, Any]) -> None:
    """Writes the split into the run's folder, for its next start and for its evaluation."""
    image_id = dataset.read_index(config.data.directory).image_id
    splits.write_splits(path, image_id, data.train_rows, data.validation_rows, **splits.origin(split))

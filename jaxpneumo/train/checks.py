"""What a start of a run is compared with before anything is trained: its folder, its data, the runs it starts from."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxpneumo.data import dataset
from jaxpneumo.data.labels import read_labels
from jaxpneumo.data.rle import EMPTY
from jaxpneumo.data.splits import read_splits
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Config, differences, read_config
from jaxpneumo.run.config_values import STAGES
from jaxpneumo.run.provenance import data_checksums, read_starts
from jaxpneumo.synthetic.radiographs import plan
from jaxpneumo.train.feed import StageData

logger = logging.getLogger(__name__)


def check_folder(workdir: Path, config: Config) -> bool:
    """Whether the folder holds a run of this config, on these data, to go on with; False: it holds no run.

    Raises:
      InputError: it holds a run of another config or on other data, or stages of a run without its config.
    """
    if (workdir / "config.json").is_file():
        changed = differences(read_config(workdir), config)
        if changed:
            raise InputError(
                f"{workdir} holds a run with another config. The configs differ in {', '.join(changed)}. "
                "Choose another --workdir, or repeat the first start's command to go on with it."
            )
        return True
    left = [f"{stage}/{part}" for stage in STAGES for part in ("checkpoints", "final")]
    if found := [name for name in left if (workdir / name).is_dir()]:
        raise InputError(
            f"{workdir} holds {found[0]} of a run, but not its config.json, so nothing tells whether it is of this "
            "config. Put config.json back, or choose another --workdir."
        )
    return False


def check_data(workdir: Path, config: Config) -> None:
    """Raises InputError where a run goes on with other images, masks or labels than it was started with."""
    starts = read_starts(workdir)
    first = starts[0].get("data", {}) if starts else {}  # earlier versions did not record it
    now = data_checksums(config)
    changed = [name for name, checksum in first.items() if now.get(name) != checksum]
    if changed:
        raise InputError(
            f"{config.data.directory} holds other data than {workdir} was started with: {', '.join(changed)} changed. "
            "Give the data set of the first start, or choose another --workdir."
        )


def check_positives(data: StageData) -> None:
    """Warns where no validation image shows pneumothorax. Raises InputError where no training image does."""
    positive = dataset.read_index(data.directory).positive
    if not positive[data.train_rows].any():
        raise InputError(
            f"none of the {len(data.train_rows)} training images shows pneumothorax, so there is nothing to learn. "
            f"Check the labels in {data.directory}, or choose another split."
        )
    if not positive[data.validation_rows].any():
        logger.warning(
            "None of the %d validation images shows pneumothorax: their scores say nothing of what is found, and the "
            "best is that of a network that outlines nothing.",
            len(data.validation_rows),
        )


def tell_lost(data: StageData, sizes: Iterable[int]) -> None:
    """Warns of training images whose whole finding is lost at a stage's size, which is trained on them as negative.

    Of the challenge's 2,669 images with pneumothorax none is lost at 256 pixels, 4 at 128 and 30 at 64.
    """
    rows = data.train_rows[dataset.read_index(data.directory).positive[data.train_rows]]
    for size in sorted(set(sizes)):
        _, masks = dataset.open_arrays(data.directory, size)
        lost = sum(not masks[row].any() for row in rows)
        if lost:
            logger.warning(
                "At %d pixels no pixel is left of the finding of %d among the %d training images with pneumothorax: "
                "they are trained on as negative there. A larger size keeps them.",
                *(size, lost, len(rows)),
            )


def check_drawn(folder: Path, count: int, seed: int, positive_fraction: float) -> None:
    """Raises InputError unless a folder's labels are of the synthetic radiographs that these values draw."""
    planned = {case.image_id: case.positive for case in plan(count, seed, positive_fraction)}
    drawn = {image_id: rows[0][1] != EMPTY for image_id, rows in read_labels(folder / "labels.csv").codes.items()}
    if drawn != planned:
        raise InputError(
            f"{folder} holds {len(drawn)} radiographs, {sum(drawn.values())} positive, and --config.data.synthetic "
            f"asks for {count}, {sum(planned.values())} positive. Give another --config.data.directory, or remove the "
            "folders of this one."
        )


def seen_before(config: Config, data: StageData) -> int:
    """The number of validation images that a run to start from, or one before it, was trained on.

    Other images of a patient count as the image itself. Runs whose training images are not known are told in the log.
    """
    index = dataset.read_index(data.directory)
    ids: set[str] = set()
    waiting, known = _starts_of(config), set[Path]()
    while waiting:
        source = waiting.pop()
        if source in known:
            continue
        known.add(source)
        try:
            waiting += _starts_of(read_config(source))
            ids.update(read_splits(source / "splits.json")["train"])
        except InputError:
            logger.warning(
                "It is not known on which images %s was trained, so validation images may be among them.", source
            )
    trained = np.isin(index.image_id, list(ids))
    patients = set(index.patient[trained].tolist()) - {""}
    rows = data.validation_rows
    seen = int((trained[rows] | np.isin(index.patient[rows], list(patients))).sum())
    if seen:
        logger.warning(
            "%d of %d validation images, or other images of their patients, were training images of the run that this "
            "one starts from: their scores are too optimistic. Give both runs one --config.data.split.",
            *(seen, len(rows)),
        )
    return seen


def _starts_of(config: Config) -> list[Path]:
    """The runs whose weights a config starts from."""
    return [Path(source) for source in (config.init_from, *(stage.start_from for stage in config.stages)) if source]

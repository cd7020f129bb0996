"""Which images an evaluation scores, and which of several runs score each of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data import dataset
from jaxpneumo.data.splits import OUT_OF_FOLD, read_splits, split_rows
from jaxpneumo.process.errors import InputError

SHARED_PATIENTS = "validation_images_with_patient_in_training"  # as `split_rows` counts them

# The runs that score some images, by their places in the list of runs, and the rows of these images.
Team = tuple[tuple[int, ...], np.ndarray]


def select(
    workdirs: Sequence[Path], data: Path, part: str, weights: Sequence[float] | None = None
) -> tuple[list[Team], dict[str, Any]]:
    """Chooses the images of a part of the runs' split, and the runs that score them.

    Runs of one split all score its images. If the runs validate on different images, as folds do, each validation
    image is scored by the runs that were not trained on it.

    Args:
      workdirs: folders of the runs.
      data: the prepared data set.
      part: "validation", "train" or "all".
      weights: weights of the runs; a run of weight 0 alone scores no image out of fold. None: all count.

    Returns:
      The teams, no image in two of them; and a description of the split for `splits.words` and summary.json.

    Raises:
      InputError: the data set lacks images of a run, the training parts differ and are asked for, or a run has no
        split and a part of it is asked for.
    """
    index = dataset.read_index(data)
    everyone = tuple(range(len(workdirs)))
    if part == "all":
        trained = count_trained(workdirs, index.image_id)
        return [(everyone, np.arange(len(index)))], {"method": "none", "part": "whole", "images_in_training": trained}
    parts = [_rows(workdir, data, index) for workdir in workdirs]
    train, validation, split = parts[0]
    if all(np.array_equal(validation, other) for _, other, _ in parts[1:]):
        if part == "train":
            # Every patient is in training here, so the number of those on both sides would mean nothing.
            split = {key: value for key, value in split.items() if key != SHARED_PATIENTS}
            return [(everyone, train)], {"part": part, **split, "images_in_training": len(train)}
        return [(everyone, validation)], {"part": part, **split}
    if part == "train":
        raise InputError(
            f"{workdirs[0]} and the other runs were trained on different images: score their validation parts, or "
            "all images with --part all."
        )
    counted = [run for run in everyone if weights is None or weights[run] > 0]
    return _out_of_fold([(train, validation) for train, validation, _ in parts], counted, index)


def count_trained(workdirs: Sequence[Path], image_id: np.ndarray) -> int | None:
    """Counts the images that one of the runs was trained on; None if a run has no split, as it was imported."""
    files = [workdir / "splits.json" for workdir in workdirs]
    if not all(file.is_file() for file in files):
        return None
    seen = {name for file in files for name in read_splits(file)["train"]}
    return sum(name in seen for name in image_id.tolist())


def _rows(workdir: Path, data: Path, index: dataset.Index) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """As `split_rows` for a run's own split, of a data set that has all of its images."""
    if not (workdir / "splits.json").is_file():
        raise InputError(f"{workdir} was imported and has no split: give --part all.")
    of_split = read_splits(workdir / "splits.json")
    ids = of_split["train"] + of_split["validation"]
    if lacking := int((~np.isin(ids, index.image_id)).sum()):
        raise InputError(
            f"{data} lacks {lacking} of the {len(ids)} images of {workdir}: it is another data set. "
            "Give --part all to score all of it, or give the run's own data set with --data."
        )
    return split_rows(index, str(workdir / "splits.json"), 0.0, 0)


def _out_of_fold(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], counted: Sequence[int], index: dataset.Index
) -> tuple[list[Team], dict[str, Any]]:
    """The teams of runs whose (training rows, validation rows) differ."""
    unseen = np.zeros((len(parts), len(index)), bool)
    for run in counted:
        unseen[run] = ~np.isin(np.arange(len(index)), parts[run][0])
    rows = np.unique(np.concatenate([parts[run][1] for run in counted]))
    scorers, team_of = np.unique(unseen[:, rows], axis=1, return_inverse=True)
    teams = [
        (tuple(np.flatnonzero(scorers[:, number]).tolist()), rows[team_of.ravel() == number])
        for number in range(scorers.shape[1])
    ]
    known = index.patient != ""
    shared = 0
    for members, own in teams:
        seen = np.unique(np.concatenate([index.patient[parts[run][0]] for run in members]))
        shared += int((known[own] & np.isin(index.patient[own], seen)).sum())
    return teams, {
        "method": OUT_OF_FOLD,
        "part": "validation",
        "validation_images": len(rows),
        "runs_per_image": sorted({len(members) for members, _ in teams}),
        SHARED_PATIENTS: shared if known[rows].any() else None,
    }

"""Which images train and which validate: at random as in the papers, or with every patient on one side only.

The papers split by image; in the challenge's data most validation images then have their patient in training.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data.dataset import Index
from jaxpneumo.errors import InputError
from jaxpneumo.files import read_json, write_json

DRAWS = 256  # random patient splits of which the most even one is taken


def check(split: str | Path, fraction: float) -> None:
    """Raises InputError unless `split` is "random", "patient" or a splits.json, and 0 <= `fraction` < 1."""
    if not 0 <= fraction < 1:
        raise InputError(f"The validation fraction is {fraction}; give one from 0 to below 1, such as 0.1.")
    if split not in ("random", "patient"):
        read_splits(split)


def random_split(positive: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images at random, stratified by label.

    Args:
      positive: (N,) bool.
      fraction: share of validation images of each label, 0 <= fraction < 1, rounded to whole images.
      seed: the same seed gives the same split.

    Returns:
      Training and validation rows, int64, ascending.
    """
    check("random", fraction)
    rng = np.random.default_rng(seed)
    validation = [np.zeros(0, np.int64)]
    for label in (True, False):
        rows = rng.permutation(np.flatnonzero(positive == label))
        validation.append(rows[: round(fraction * rows.size)])
    return _both_sides(np.concatenate(validation), len(positive))


def patient_split(
    positive: np.ndarray, patient: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images so that no patient is on both sides, stratified by label as well as the patients allow.

    Of many random choices of patients it takes the one whose numbers of positive and negative validation
    images come nearest to `fraction`. Only who belongs together and the images' order matter, not the names.

    Args:
      positive: (N,) bool.
      patient: (N,) str; images with the unknown patient "" count as a patient each.
      fraction: share of validation images, 0 <= fraction < 1.
      seed: the same seed gives the same split.

    Returns:
      Training and validation rows, int64, ascending.
    """
    check("random", fraction)
    group = _groups(patient)
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2 or fraction == 0:
        return _both_sides(np.zeros(0, np.int64), len(positive))
    images = np.bincount(group, minlength=n_groups)
    positives = np.bincount(group[positive], minlength=n_groups)
    rng = np.random.default_rng(seed)
    best, least = np.zeros(0, np.int64), np.inf
    for _ in range(DRAWS):
        order = rng.permutation(n_groups)
        total = np.cumsum(images[order])
        # At least one patient on either side.
        count = 1 + int(np.argmin(np.abs(total[:-1] - fraction * total[-1])))
        n_positive = positives[order[:count]].sum()
        excess_positive = n_positive - fraction * positives.sum()
        excess_negative = total[count - 1] - n_positive - fraction * (total[-1] - positives.sum())
        if (error := abs(excess_positive) + abs(excess_negative)) < least:
            best, least = order[:count], error
    return _both_sides(np.flatnonzero(np.isin(group, best)), len(positive))


def write_splits(
    path: Path | str,
    image_id: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    method: str,
    fraction: float,
    seed: int,
) -> None:
    """Writes rows as the ids of their images, so that the file outlives a new preparation."""
    split = {"method": method, "seed": seed, "validation_fraction": fraction}
    split |= {"train": image_id[train].tolist(), "validation": image_id[validation].tolist()}
    write_json(path, split)


def read_splits(path: Path | str) -> dict[str, Any]:
    """Reads a splits file. Raises InputError when it is missing or lacks the lists of ids."""
    split = read_json(path)
    for side in ("train", "validation"):
        ids = split.get(side) if isinstance(split, dict) else None
        if not isinstance(ids, list) or not all(isinstance(image_id, str) for image_id in ids):
            raise InputError(f'{path} has no list of image ids "{side}". Give a splits.json as `prepare` writes it.')
    return split


def split_rows(
    index: Index, split: str | Path, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The rows of a prepared data set for training and for validation.

    Args:
      index: of the data set.
      split: "random", "patient", or the path of a splits.json (then `fraction` and `seed` are not used).
      fraction: share of validation images.
      seed: of the draw.

    Returns:
      Training rows, validation rows (int64, ascending) and a description for reports: method, seed,
      validation_fraction, numbers of images, and validation_images_with_patient_in_training (None where
      patients are unknown).

    Raises:
      InputError: the file names unknown images or one twice, or no patient is known for "patient".
    """
    settings = {"method": str(split), "seed": seed, "validation_fraction": fraction}
    if split == "random":
        train, validation = random_split(index.positive, fraction, seed)
    elif split == "patient":
        if len(index) and not (index.patient != "").any():
            raise InputError(
                "No patient is known in this data set, so it cannot be split by patient. Prepare it again "
                "with --patients CSV (columns ImageId,patient), or split at random."
            )
        train, validation = patient_split(index.positive, index.patient, fraction, seed)
    else:
        file = read_splits(split)
        settings = {key: file.get(key) for key in settings}
        train, validation = _rows_of_file(index, split, file)
    return train, validation, settings | _description(index, train, validation)


def _description(index: Index, train: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
    known = validation[index.patient[validation] != ""]
    shared = int(np.isin(index.patient[known], index.patient[train]).sum()) if known.size else None
    return {
        "train_images": len(train),
        "validation_images": len(validation),
        "validation_images_with_patient_in_training": shared,
    }


def _rows_of_file(index: Index, path: str | Path, split: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    row_of = {image_id: row for row, image_id in enumerate(index.image_id.tolist())}
    ids = split["train"] + split["validation"]
    if unknown := [image_id for image_id in ids if image_id not in row_of]:
        raise InputError(
            f"{path} names {len(unknown)} images that the data set does not have, {unknown[0]} first. "
            "Use the splits.json of this data set, or prepare all of the images."
        )
    if len(set(ids)) < len(ids):
        twice = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise InputError(f"{path} names {twice} more than once. Leave every image on one side only.")
    train, validation = (
        np.sort(np.array([row_of[image_id] for image_id in split[side]], np.int64)) for side in ("train", "validation")
    )
    return train, validation


def _groups(patient: np.ndarray) -> np.ndarray:
    """(N,) group numbers in the order of first appearance; every "" is a group of its own."""
    numbers: dict[Any, int] = {}
    names = (name or row for row, name in enumerate(patient.tolist()))
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _both_sides(validation: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    validation = np.sort(validation.astype(np.int64))
    return np.setdiff1d(np.arange(count, dtype=np.int64), validation), validation

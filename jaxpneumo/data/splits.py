"""Divides images into training and validation: at random as in the papers, or with each patient on one side only.

The papers split by image; in the challenge's data most validation images then have their patient in training.

A splits file is JSON with the image ids of "train" and "validation", or of the k "folds", any of which can be
the validation part; or a csv with the columns ImageId,split, where split is train or validation.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data import labels
from jaxpneumo.data.dataset import Index
from jaxpneumo.data.ids import of_images
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import did_you_mean
from jaxpneumo.process.sealed import write_sealed

DRAWN = ("random", "patient")
SIDES = ("train", "validation")
OUT_OF_FOLD = "out of fold"  # of several runs' validation parts together
SEEN = "validation_images_seen_before"  # of a splits file, see `split_rows`
DESCRIPTIONS = {
    OUT_OF_FOLD: "out of fold (each image by the runs that were not trained on it)",
    "random": "split at random",
    "patient": "split by patient",
    "rounds": "split by the challenge's rounds",
    "none": "not split",
    "": "split",
}
DRAWS = 256  # random patient splits of which the most even one is taken


def check_name(split: str, option: str, methods: tuple[str, ...] = DRAWN) -> None:
    """Raises InputError, naming `option`, for what is neither a method of splitting nor the name of any file."""
    if split not in methods and not Path(split).suffix and not Path(split).exists():
        raise InputError(
            f"{option} {split}: there is no such file; give one, or {', '.join(methods[:-1])} or {methods[-1]}."
            f"{did_you_mean(split, methods)}"
        )


def check(split: str | Path, fraction: float) -> None:
    """Raises InputError unless `split` is "random", "patient" or a splits file, and 0 <= `fraction` < 1."""
    if not 0 <= fraction < 1:
        raise InputError(f"The validation fraction is {fraction}; give one from 0 to below 1, such as 0.1.")
    if split not in DRAWN:
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
    images come nearest to `fraction`. The result depends on the grouping and the order of the images, not on the names.

    Args:
      positive: (N,) bool.
      patient: (N,) str; images with the unknown patient "" count as a patient each.
      fraction: share of validation images, 0 <= fraction < 1.
      seed: the same seed gives the same split.

    Returns:
      Training and validation rows, int64, ascending.
    """
    check("random", fraction)
    group = patient_groups(patient)
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


def random_folds(positive: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deals images into folds at random, stratified by label.

    Args:
      positive: (N,) bool.
      folds: number of folds, 2 to N.
      seed: the same seed gives the same folds.

    Returns:
      (N,) int64, the fold of each image. Folds differ by at most one image of either label, and in all.

    Raises:
      InputError: fewer than two folds, or more than images.
    """
    _check_folds(folds, len(positive), "images")
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(positive), np.int64)
    # Dealt round like cards; the negatives go on where the positives ended.
    order = np.concatenate([rng.permutation(np.flatnonzero(positive == label)) for label in (True, False)])
    fold[order] = np.arange(len(order)) % folds
    return fold


def patient_folds(positive: np.ndarray, patient: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deals patients into folds, so that no patient is in two, stratified by label as well as they allow.

    Patients are taken in random order, those with many images first. Each goes to the fold that has the fewest of the
    images it brings: positive images, negative images, all images.

    Args:
      positive: (N,) bool.
      patient: (N,) str; images with the unknown patient "" count as a patient each.
      folds: number of folds, 2 to the number of patients.
      seed: the same seed gives the same folds.

    Returns:
      (N,) int64, the fold of each image; no fold is empty.

    Raises:
      InputError: fewer than two folds, or more than patients.
    """
    group = patient_groups(patient)
    n_groups = int(group.max(initial=-1)) + 1
    _check_folds(folds, n_groups, "patients")
    kinds = np.stack([positive, ~positive, np.ones_like(positive)]).astype(float)
    brings = np.stack([np.bincount(group, kind, n_groups) for kind in kinds], axis=1)
    weight = brings / np.maximum(brings.sum(axis=0), 1) ** 2
    order = np.random.default_rng(seed).permutation(n_groups)
    order = order[np.argsort(-brings[order, 2], kind="stable")]
    has, fold_of = np.zeros((folds, len(kinds))), np.zeros(n_groups, np.int64)
    for patient_group in order:
        fold_of[patient_group] = chosen = int(np.argmin(has @ weight[patient_group]))
        has[chosen] += brings[patient_group]
    return fold_of[group]


def rounds_split(round1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The challenge's first round: trains on its training part, validates on its test part, which was labelled later.

    Args:
      round1: (N,) str, "train" or "test".

    Returns:
      Training and validation rows, int64, ascending.

    Raises:
      InputError: another value.
    """
    if other := sorted(set(round1.tolist()) - {"train", "test"}):
        raise InputError(f"The column round1 has the value {other[0]!r}; it is train or test for every image.")
    return _both_sides(np.flatnonzero(round1 == "test"), len(round1))


def write_splits(
    path: Path | str,
    image_id: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    method: str,
    fraction: float | None,
    seed: int | None,
    file: str = "",
    validation_images_seen_before: int = 0,
    **folds: int,
) -> None:
    """Writes rows as the ids of their images, so that the file outlives a new preparation.

    `file` names the splits file that they are from, and `folds` says of which fold they are, as `split_rows`
    describes it: fold and folds; so does `validation_images_seen_before`.
    """
    split = {"method": method, "seed": seed, "validation_fraction": fraction}
    split |= {"file": file} if file else {}
    split |= {"part_of": folds} if folds else {}
    split |= {SEEN: validation_images_seen_before} if validation_images_seen_before else {}
    split |= {"train": image_id[train].tolist(), "validation": image_id[validation].tolist()}
    write_sealed(path, split)


def write_folds(path: Path | str, folds: list[np.ndarray], method: str, seed: int | None) -> None:
    """Writes a splits file of folds, given as their images' ids."""
    split = {"method": method, "seed": seed, "validation_fraction": 1 / len(folds)}
    write_sealed(path, split | {"folds": [fold.tolist() for fold in folds]})


def read_splits(path: Path | str, fold: int = 0) -> dict[str, Any]:
    """Reads a splits file.

    Args:
      path: JSON as `write_splits` and `write_folds` leave it, or a csv with the columns ImageId,split.
      fold: which of the file's folds validates; 0 where it has none.

    Returns:
      "train" and "validation", lists of image ids; method, seed, validation_fraction where the file says
      them; of a file of folds also "folds", their number, and "fold".

    Raises:
      InputError: the file is missing, malformed, or has no such fold or no images in it.
    """
    if Path(path).suffixes[-1:] == [".csv"] or Path(path).suffixes[-2:] == [".csv", ".gz"]:
        split = _read_csv(path)
    else:
        split = read_json(path)
    folds = split.get("folds") if isinstance(split, dict) else None
    if isinstance(folds, list) and folds and all(map(_are_ids, folds)):
        if not 0 <= fold < len(folds):
            raise InputError(f"{path} has the folds 0 to {len(folds) - 1}, not {fold}. Choose one of them.")
        if not folds[fold]:
            raise InputError(f"{path}: fold {fold} has no images. Make the folds anew with `jaxpneumo split --folds`.")
        train = [image_id for number, ids in enumerate(folds) if number != fold for image_id in ids]
        return split | {"folds": len(folds), "fold": fold, "train": train, "validation": folds[fold]}
    for side in SIDES:
        if not _are_ids(split.get(side) if isinstance(split, dict) else None):
            raise InputError(
                f'{path} has no list of image ids "{side}". Give a splits.json as `prepare` or `split` writes it, '
                "or a csv with the columns ImageId,split."
            )
    if fold:
        raise InputError(f"{path} has no folds, so there is no fold {fold}. Make some with `jaxpneumo split --folds`.")
    return split


def split_rows(
    index: Index, split: str | Path, fraction: float, seed: int, fold: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The rows of a prepared data set for training and for validation.

    Args:
      index: of the data set.
      split: "random", "patient", or the path of a splits file (then `fraction` and `seed` are not used).
      fraction: share of validation images.
      seed: of the draw.
      fold: which fold of a splits file validates.

    Returns:
      Training rows, validation rows (int64, ascending) and a description for reports and `words`: method, seed,
      validation_fraction, fold and folds of a file that has some, file where a splits file says that it is made of
      another one, numbers of images, and validation_images_with_patient_in_training (None where patients are
      unknown). Of a run's own file also SEEN, if there are any: validation images on which a run was trained that it
      started from.

    Raises:
      InputError: the file names unknown images or one twice, it has no such fold, or no patient is known for
        "patient".
    """
    settings: dict[str, Any] = {"method": str(split), "seed": seed, "validation_fraction": fraction}
    if fold and split in DRAWN:
        raise InputError(
            f"A {split} split has no folds, so there is no fold {fold}. Make some with `jaxpneumo split --data DIR "
            f"--method {split} --folds K --output folds.json`, and give the split as that file: data.split=folds.json."
        )
    if split == "random":
        train, validation = random_split(index.positive, fraction, seed)
    elif split == "patient":
        check_patients(index)
        train, validation = patient_split(index.positive, index.patient, fraction, seed)
    else:
        file = read_splits(split, fold)
        settings = {key: file.get(key) for key in settings} | {
            key: file[key] for key in ("folds", "fold") if key in file
        }
        settings |= file["part_of"] if isinstance(file.get("part_of"), dict) else {}
        settings |= {SEEN: file[SEEN]} if isinstance(file.get(SEEN), int) else {}
        settings |= {"file": Path(file["file"]).name} if isinstance(file.get("file"), str) else {}
        if isinstance(settings["method"], str):  # runs once had their file's path there
            settings["method"] = Path(settings["method"]).name
        train, validation = _rows_of_file(index, split, file)
    shared = with_patient_in_training(index.patient, train, validation)
    description = {
        "train_images": len(train),
        "validation_images": len(validation),
        "validation_images_with_patient_in_training": None if shared is None else len(shared),
    }
    return train, validation, settings | description


def origin(split: dict[str, Any]) -> dict[str, Any]:
    """What `write_splits` keeps of a split as `split_rows` describes it."""
    kept = {key: split[key] for key in ("method", "seed", "file", "fold", "folds", SEEN) if key in split}
    return kept | {"fraction": split["validation_fraction"]}


def words(split: dict[str, Any]) -> str:
    """A split as `split_rows` describes it: "split by patient (file siim-folds.json, fold 2)"."""
    method = split["method"] or ""
    is_file = method.endswith((".json", ".csv", ".csv.gz"))
    file = split.get("file") or (method if is_file else "")
    details = [f"file {Path(file).name}"] if file else []
    details += [f"fold {split['fold']}"] if "fold" in split else []
    if seen := split.get(SEEN):
        details.append(f"{seen} of the validation images seen by the run that it started from")
    how = DESCRIPTIONS.get("" if is_file else method, f"split {method}")
    return f"{how} ({', '.join(details)})" if details else how


def check_patients(index: Index, file: Path | str | None = None) -> None:
    """Raises InputError when no patient is known, so that nothing can be split by patient.

    Args:
      index: of the data set.
      file: where its patients are from, if that is a csv.
    """
    if len(index) and not (index.patient != "").any():
        if file:
            raise InputError(no_patients(file))
        raise InputError(
            "No patient is known in this data set, so it cannot be split by patient. Prepare it again "
            "with --patients CSV (columns ImageId,patient), or split at random."
        )


def no_patients(file: Path | str) -> str:
    """In words, that a patients csv names nobody."""
    return (
        f"{file} names no patient of these images, so they cannot be split by patient: its column patient is empty, "
        "has a word such as ANONYMOUS, or the same value for nearly all. Fill it in, or split at random."
    )


def with_patient_in_training(patient: np.ndarray, train: np.ndarray, validation: np.ndarray) -> np.ndarray | None:
    """The validation rows whose patient has images in training too; None where their patients are unknown."""
    known = validation[patient[validation] != ""]
    return known[np.isin(patient[known], patient[train])] if known.size else None


def _rows_of_file(index: Index, path: str | Path, split: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    row_of = {image_id: row for row, image_id in enumerate(index.image_id.tolist())}
    given = split["train"] + split["validation"]
    image_of = of_images(given, row_of)
    ids = [image_of[each] for each in given]
    if unknown := [image_id for image_id in ids if image_id not in row_of]:
        raise InputError(
            f"{path} names {len(unknown)} images that the data set does not have, {unknown[0]} first: they were not "
            "prepared, or have no label. Use a splits file of this data set, or prepare all of the images."
        )
    if len(set(ids)) < len(ids):
        twice = next(image_id for image_id, count in Counter(ids).items() if count > 1)
        raise InputError(f"{path} names {twice} more than once. Keep each image on one side only.")
    train, validation = (
        np.sort(np.array([row_of[image_of[each]] for each in split[side]], np.int64)) for side in SIDES
    )
    return train, validation


def _read_csv(path: Path | str) -> dict[str, Any]:
    """The splits file of a csv with the columns ImageId,split."""
    ids: dict[str, list[str]] = {side: [] for side in SIDES}
    for line, row in labels.read_rows(path, ("ImageId", "split")):
        if row["split"] not in SIDES:
            raise InputError(
                f"{path} line {line}: the split {row['split']!r} is neither train nor validation. Correct it, or "
                "remove the line to leave the image out."
            )
        ids[row["split"]].append(row["ImageId"])
    return {"method": Path(path).name, "seed": None, "validation_fraction": None, **ids}


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(image_id, str) for image_id in value)


def _check_folds(folds: int, count: int, of_what: str) -> None:
    if not 2 <= folds <= count:
        raise InputError(f"{count} {of_what} cannot make {folds} folds; choose --folds from 2 to {count}.")


def patient_groups(patient: np.ndarray) -> np.ndarray:
    """(N,) group numbers in the order of first appearance; every "" is a group of its own."""
    numbers: dict[Any, int] = {}
    names = (name or row for row, name in enumerate(patient.tolist()))
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _both_sides(validation: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    validation = np.sort(validation.astype(np.int64))
    return np.setdiff1d(np.arange(count, dtype=np.int64), validation), validation

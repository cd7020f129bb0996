"""The csv tables alone: what can be counted and split without any radiograph."""

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxpneumo.data import ids, rle
from jaxpneumo.data import labels as label_files
from jaxpneumo.data.dataset import Index
from jaxpneumo.dicom import patients as words
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
NATIVE = 1024  # side length of the challenge's images, which the tables do not say


def read_tables(labels: Path | str, patients: Path | str | None = None) -> Index:
    """The index of the images, as far as the tables give it.

    Args:
      labels: csv with ImageId,EncodedPixels; the codes are of 1024x1024 images.
      patients: csv with ImageId,patient and, where present, sex,age,view. An image that it does not list has
        the unknown patient "".

    Returns:
      One entry an image in the label file's order. `patient` is the file's own value, in memory only: whoever
      writes it anywhere has to make a pseudonym of it. `source` and `sha256` are "".

    Raises:
      InputError: a file that cannot be understood, an invalid code, or no image common to both.
    """
    table = label_files.distinct(read_labels(labels))
    people = _of_images(label_files.read_patients(patients), table.codes, patients) if patients else {}
    if patients and not people.keys() & table.codes.keys():
        raise InputError(f"{patients} lists none of the images in {labels}. Give the one for them.")
    person = [people.get(image_id, label_files.Patient("")) for image_id in table.codes]
    areas = [_area(table, image_id) for image_id in table.codes]
    count = len(table.codes)
    return Index(
        image_id=np.array(list(table.codes), str),
        patient=_believed([one.patient for one in person], patients),
        sex=np.array([one.sex for one in person], str),
        age=np.array([np.nan if one.age is None else one.age for one in person], float),
        view=np.array([one.view for one in person], str),
        height=np.full(count, NATIVE),
        width=np.full(count, NATIVE),
        mask_area=np.array([area for area, _ in areas], np.int64),
        label_rows=np.array([rows for _, rows in areas], np.int64),
        source=np.full(count, ""),
        sha256=np.full(count, ""),
    )


def read_labels(path: Path | str) -> label_files.Labels:
    """A label file in which an image with several ids (X and X.dcm) goes by the first. Raises InputError as it does."""
    table = label_files.read_labels(path)
    plain = ids.plain_ids(table.codes, ())
    first = {image: group[0] for image, group in ids.spellings(plain).items() if not ids.unclear(image, group)}
    return replace(table, codes=ids.merged(table.codes, {each: first.get(plain[each], each) for each in plain}))


def add_source(parser: Parser) -> None:
    """The options that say what is counted or split: a prepared data set, or the bare table."""
    parser.add_argument("--data", type=places.path, metavar="DIR", help="prepared data set")
    parser.add_argument(
        "--labels",
        type=places.path,
        metavar="CSV",
        help="instead: ImageId,EncodedPixels without images; may end in .gz",
    )


def with_patients(index: Index, patients: Path | str) -> Index:
    """The index with the patients of another file, in memory only; "" where it does not list the image.

    Raises:
      InputError: a file that cannot be understood, or that lists none of the images.
    """
    image_id = index.image_id.tolist()
    people = _of_images(label_files.read_patients(patients), image_id, patients)
    if not people.keys() & set(image_id):
        raise InputError(
            f"{patients} lists none of the images of the data set. Give the patients file for these images."
        )
    names = [people[name].patient if name in people else "" for name in image_id]
    return replace(index, patient=_believed(names, patients))


def has_column(path: Path | str, column: str) -> bool:
    """Whether a csv file has a column of this name (and a row). Raises InputError when it cannot be read."""
    return column in next((row for _, row in label_files.read_rows(path, ())), {})


def read_column(path: Path | str, column: str, image_id: np.ndarray) -> np.ndarray:
    """One column of a patients file for the given images, (N,) str.

    Raises:
      InputError: the file has no such column, lists an image twice or lacks one.
    """
    value: dict[str, str] = {}
    for line, row in label_files.read_rows(path, ("ImageId", column)):
        if row["ImageId"] in value:
            raise InputError(f"{path} line {line}: {row['ImageId']} is listed a second time. Keep one of the lines.")
        value[row["ImageId"]] = row[column]
    value = _of_images(value, image_id.tolist(), path)
    if missing := [name for name in image_id.tolist() if name not in value]:
        raise InputError(f"{path} lacks {len(missing)} of the images, {missing[0]} first. Give a file with all images.")
    return np.array([value[name] for name in image_id.tolist()], str)


def _of_images(values: dict[str, T], images: Collection[str], path: Path | str) -> dict[str, T]:
    """The values of a csv, keyed by the images that its ids mean."""
    return ids.one_each(values, ids.of_images(values, images), path)


def _believed(patients: list[str], path: Path | str | None) -> np.ndarray:
    """Patients, "" for those that are nobody, which is said."""
    believed, problem = words.believe([words.name(patient) for patient in patients])
    if problem:
        logger.warning("%s: %s. These patients are unknown.", path, problem)
    return np.array(believed, str)


def _area(table: label_files.Labels, image_id: str) -> tuple[int, int]:
    """Pixels of an image's mask and its rows with a region; a mask is made only where regions may overlap."""
    codes = table.codes[image_id]
    if len(codes) > 1:
        mask, _, rows = label_files.mask(table, image_id, NATIVE, NATIVE)
        return 0 if mask is None else int(np.count_nonzero(mask)), rows
    line, code = codes[0]
    try:
        rle.check_dialect(code, NATIVE, NATIVE)
        return rle.area(code, NATIVE, NATIVE), int(code != rle.EMPTY)
    except ValueError as error:
        raise InputError(f"{table.path} line {line}: {error} ({NATIVE} x {NATIVE}). Correct the line.") from None

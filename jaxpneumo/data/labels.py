"""The csv files that come with the images: masks by image (`ImageId,EncodedPixels`) and patients by image.

Both dialects of the challenge are read: header and values with or without a blank after the comma, ids that
are SOP instance UIDs or `ID_...`; and ids with endings or as paths (`ids`). Run-length codes of other kinds
are refused (`rle`). Files whose name ends in .gz are unpacked on the way.
"""

import csv
import gzip
import hmac
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxpneumo.data import rle
from jaxpneumo.dicom import patients as words
from jaxpneumo.process import run_report
from jaxpneumo.process.errors import InputError

WAY_OUT = {
    rle.ABSOLUTE: "Convert every code: from each start but the first take the end of the run before (its start + its "
    "length); if the starts count from 1, take 1 from the first as well.",
    rle.ENDS: "Convert every code: a length is end - start, and each start but the first the distance from the end of "
    "the run before.",
}
# The csv module stops at 128 KiB a field; the code of a ragged mask in a large image can be longer.
LONGEST_FIELD = 1 << 26


@dataclass(frozen=True)
class Labels:
    """The rows of a label file by image.

    Attributes:
      path: the file, for messages.
      codes: ImageId -> its (line number, run-length code) pairs in the file's order.
      unclear: ImageId -> the ids in the file that could all mean it, and may be of two images.
      repeated: rows that were left out as `distinct` does.
      entry: what messages call one of them.
      missing_are_empty: False, as an image without a row is not negative.
    """

    path: Path
    codes: dict[str, list[tuple[int, str]]]
    unclear: dict[str, list[str]] = field(default_factory=dict)
    repeated: int = 0
    entry: ClassVar[str] = "line"
    missing_are_empty: ClassVar[bool] = False

    def words(self, image_id: str) -> str:
        """Where an image's rows stand, for messages."""
        lines = [str(line) for line, _ in self.codes[image_id]]
        return f"line{'s' * (len(lines) > 1)} {', '.join(lines)} of the label file"


@dataclass(frozen=True)
class Patient:
    """What a patients file says about one image; "" and None where it says nothing."""

    patient: str
    sex: str = ""
    age: int | None = None
    view: str = ""


@contextmanager
def open_csv(path: Path) -> Iterator[Any]:
    """A `csv.reader` of a csv or csv.gz file; InputError where the file cannot be read, also later on."""
    run_report.read(path)
    csv.field_size_limit(LONGEST_FIELD)
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a csv file in UTF-8 ({error}). Save it as csv in UTF-8.") from error


def read_rows(path: Path | str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a csv file row by row.

    Args:
      path: csv, or csv.gz.
      columns: names that the header must have; others may follow.

    Yields:
      (line number, {column: value}) with blanks around names and values removed; empty lines are passed over.

    Raises:
      InputError: the file cannot be read, lacks a column or has two of one name, or has a row of another length than
        its header.
    """
    path = Path(path)
    with open_csv(path) as reader:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            raise InputError(
                f"{path} line 1: the header lacks {', '.join(missing)}; it is {','.join(header)[:99]!r}. "
                f"Make its first line {','.join(columns)}."
            )
        if twice := [name for name, times in Counter(header).items() if name and times > 1]:
            raise InputError(
                f"{path} line 1: several columns are called {' and '.join(twice)}. Keep one of them, or rename the "
                "others."
            )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise InputError(
                    f"{path} line {reader.line_num}: {len(values)} values under {len(header)} column "
                    "names. Correct or remove the line."
                )
            yield reader.line_num, dict(zip(header, map(str.strip, values), strict=True))


def read_labels(path: Path | str) -> Labels:
    """Reads a label file, `ImageId,EncodedPixels`; each code stays unchecked until its image's size is known.

    Raises:
      InputError: as `read_rows`, or a row without ImageId, no rows at all, or codes of another dialect.
    """
    path = Path(path)
    codes: dict[str, list[tuple[int, str]]] = {}
    for line, row in read_rows(path, ("ImageId", "EncodedPixels")):
        codes.setdefault(_image_id(path, line, row), []).append((line, row["EncodedPixels"]))
    if not codes:
        raise InputError(f"{path} has no label below its header. Give the file that has them.")
    if found := rle.file_dialect(row for rows in codes.values() for row in rows):
        line, dialect = found
        raise InputError(
            f"{path} line {line}: the file's run-length codes seem to be {dialect}. Read as the challenge's they would "
            f"give wrong masks. {WAY_OUT[dialect]}"
        )
    return Labels(path, codes)


def distinct(labels: Labels) -> Labels:
    """The labels without rows that repeat a row of the same image: the first of equal rows stays."""
    codes = {}
    for image_id, rows in labels.codes.items():
        first: dict[str, int] = {}
        for line, code in rows:
            first.setdefault(code, line)
        codes[image_id] = [(line, code) for code, line in first.items()]
    found, kept = (sum(map(len, each.values())) for each in (labels.codes, codes))
    return replace(labels, codes=codes, repeated=found - kept)


def conflict(labels: Labels, image_id: str) -> str:
    """The contradiction in the rows of an image, in words; "" if there is none.

    It has a row -1 and a row with a region, or ids that may be of two images.
    """
    if group := labels.unclear.get(image_id):
        return f"{labels.path.name} has {' and '.join(group)}, which could all mean it. Keep the one that does."
    empty = [line for line, code in labels.codes[image_id] if code == rle.EMPTY]
    regions = [line for line, code in labels.codes[image_id] if code != rle.EMPTY]
    if not empty or not regions:
        return ""
    return f"{labels.path} line {empty[0]} says -1, line {regions[0]} has a region. Remove the wrong one."


def mask(labels: Labels, image_id: str, height: int, width: int) -> tuple[np.ndarray | None, str, int]:
    """The mask of one image: the union of its rows.

    Returns:
      The mask, (height, width) uint8 0/1, column by column in memory, or None when no row has a region; its
      run-length code; and the number of rows that are not "-1".

    Raises:
      InputError: a code is malformed or leaves the image; names file and line.
    """
    rows = [(line, code) for line, code in labels.codes[image_id] if code != rle.EMPTY]
    union = None
    for line, code in rows:
        try:
            rle.check_dialect(code, height, width)
            region = rle.decode_columns(code, height, width)
        except ValueError as error:
            raise InputError(
                f"{labels.path} line {line}: {error} ({height} x {width}). Correct the line, or remove "
                f"all lines of {image_id} and the image with them."
            ) from None
        union = region if union is None else np.bitwise_or(union, region, out=union)
    if union is None:
        return None, rle.EMPTY, 0
    code = rle.simplify(rows[0][1], height, width) if len(rows) == 1 else rle.encode(union.T)
    return union.T, code, len(rows)


def read_patients(path: Path | str) -> dict[str, Patient]:
    """Reads a patients file, `ImageId,patient` and, where present, `sex,age,view`; ImageId -> Patient.

    Raises:
      InputError: as `read_rows`, or a row without ImageId, an image listed twice, a sex or an age that is none.
    """
    path = Path(path)
    patients: dict[str, Patient] = {}
    for line, row in read_rows(path, ("ImageId", "patient")):
        image_id = _image_id(path, line, row)
        if image_id in patients:
            raise InputError(f"{path} line {line}: {image_id} is listed a second time. Keep one of the lines.")
        sex = words.sex(row.get("sex", ""))
        if sex is None:
            raise InputError(f"{path} line {line}: the sex is not F, M, O or unknown. Correct or empty it.")
        try:
            age = whole_number(row["age"]) if row.get("age") else None
        except ValueError:
            raise InputError(
                f"{path} line {line}: the age is not a whole number of years. Correct or empty it."
            ) from None
        if age is not None and age > words.MAX_AGE:
            raise InputError(f"{path} line {line}: the age is above {words.MAX_AGE} years. Correct or empty it.")
        patients[image_id] = Patient(row["patient"], sex, age, words.view(row.get("view", "")))
    return patients


def nobody(people: Collection[Patient]) -> bool:
    """Whether no one of them has a name."""
    return all(words.name(person.patient) in ("", words.NOBODY) for person in people)


def whole_number(text: str) -> int:
    """A number of the digits 0 to 9; ValueError for all else, also for what int() takes, such as "+5" and "1_0"."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:20]!r} is not a whole number")
    return int(text)


def pseudonym(patient: str, key: bytes) -> str:
    """Sixteen digits, the same for the same patient. Without the key they do not lead back to the patient."""
    return hmac.digest(key, patient.encode(), "sha256").hex()[:16] if patient else ""


def read_key(path: Path | str) -> bytes:
    """The key of `pseudonym`: a file's bytes. Raises InputError when there are none or too few to protect."""
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(key) < 16:
        raise InputError(f"{path} has {len(key)} bytes; a patient key needs at least 16 random ones.")
    return key


def _image_id(path: Path, line: int, row: dict[str, str]) -> str:
    if not row["ImageId"]:
        raise InputError(f"{path} line {line}: the ImageId is empty. Fill it in or remove the line.")
    return row["ImageId"]

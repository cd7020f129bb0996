"""The challenge's submission file: a csv with one run-length code per image."""

import csv
from collections.abc import Iterable
from pathlib import Path

from jaxpneumo.data.labels import open_csv
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError

HEADER = ["ImageId", "EncodedPixels"]
EMPTY = "-1"  # the challenge's code for an image without pneumothorax


def write_submission(path: Path | str, rows: Iterable[tuple[str, str]]) -> None:
    """Writes `ImageId,EncodedPixels`, one row per image in the given order. It writes atomically and streams `rows`.

    Args:
      path: the csv file.
      rows: (image id, code) pairs. Codes come from `jaxpneumo.data.rle.encode`; "" also means an empty mask.

    Raises:
      InputError: an image id is empty or occurs twice. Then nothing is written.
    """
    seen: set[str] = set()
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for image_id, code in rows:
            if not image_id.strip():
                raise InputError(f"{path} was not written: an image has no id. Give every image its own id.")
            if image_id in seen:
                raise InputError(f"{path} was not written: image {image_id} comes twice. Remove one of its files.")
            seen.add(image_id)
            writer.writerow([image_id, code.strip() or EMPTY])


def read_submission(path: Path | str) -> dict[str, str]:
    """Reads a submission: image id -> code ("-1" for an empty mask), in the order of the file.

    Blanks after commas and a byte order mark are accepted, because the challenge's own files have them.

    Raises:
      InputError: the file cannot be read, its header is wrong, a row does not have an id and a code, or an image occurs
        twice.
    """
    with open_csv(Path(path)) as reader:
        lines = [[field.strip() for field in row] for row in reader]
    if not lines or lines[0] != HEADER:
        found = ",".join(lines[0])[:60] if lines else "an empty file"
        raise InputError(f"{path} must begin with the header {','.join(HEADER)}; it has: {found}.")
    codes: dict[str, str] = {}
    for number, row in enumerate(lines[1:], start=2):
        if not row:
            continue  # a blank line at the end
        if len(row) != 2 or not row[0]:
            raise InputError(f"{path}, row {number}: expected an image id and its code, found {','.join(row)[:60]!r}.")
        image_id, code = row
        if image_id in codes:
            raise InputError(f"{path}, row {number}: image {image_id} comes twice; give each image one row.")
        codes[image_id] = code or EMPTY
    return codes

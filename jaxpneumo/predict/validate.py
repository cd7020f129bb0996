"""`jaxpneumo validate`: checks a submission file, also against the challenge's sample submission.

A submission may have several rows per image, one for each region, like the challenge's label files. The mask of the
image is the union of its regions.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpneumo.data import labels, rle
from jaxpneumo.predict.submission import EMPTY, HEADER
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import BAD_INPUT, DONE, InputError
from jaxpneumo.process.ranges import as_typed, whole

HELP = """\
Checks a submission csv: header, ids and run-length codes. With --sample it also checks that the submission has the
images of the sample in the same order. It prints the row of each fault, the first ones of each kind, and how many
there are:

  form      the header is not ImageId,EncodedPixels, or a row does not have an id and a code, or there is a blank
            before or after an id
  double    an image comes twice with -1, or twice with the same code
  mixed     an image has both -1 and a region
  code      a code is not "start length gap length ..." in whole numbers with one blank between two numbers, or its
            runs are out of order, or it is empty (no pneumothorax is -1)
  dialect   the codes of the whole file seem to be of another kind, such as starts that count from the first pixel
  range     runs end outside the image (--size)
  overlap   regions of one image, in different rows, share pixels
  unknown   an image is not in the sample; one fault if no image is in the sample
  missing   an image of the sample is not in the submission
  order     two images are in another order than in the sample

exit codes: 0 valid; 2 not valid, or unreadable

examples:
  jaxpneumo validate --submission predictions/submission.csv
  jaxpneumo validate --submission predictions/submission.csv --sample sample_submission.csv
  jaxpneumo validate --submission archive/submission.csv --size any

Files may end in .csv.gz.
"""

# Codes that the challenge's reader can split at blanks and convert to whole numbers.
CODE = re.compile(r"-1|[0-9]+( [0-9]+)*")


@dataclass(frozen=True)
class Fault:
    """One error in a submission.

    Attributes:
      kind: one of the kinds in HELP.
      row: row of the file; the header is row 1. 0 if no row applies.
      text: description of the error.
    """

    kind: str
    row: int
    text: str


def validate(submission: Path, sample: Path | None = None, size: tuple[int, int] | None = (1024, 1024)) -> list[Fault]:
    """Finds all errors of a submission, in the order of its rows. Missing images of the sample come last.

    Args:
      submission: the csv file.
      sample: csv with the expected images in their order. Its codes are ignored.
      size: (height, width) of all images. If None, nothing is reported as outside of the image.

    Raises:
      InputError: a file cannot be read, or `sample` is not a sample submission.
    """
    faults: list[Fault] = []
    rows: list[tuple[int, str, str]] = []
    for number, fields in _read(submission):
        if number == 1:
            if fields != HEADER:
                faults.append(Fault("form", 1, f"the header is {','.join(fields)[:60]!r}, not {','.join(HEADER)!r}"))
        elif len(fields) != 2:
            faults.append(Fault("form", number, f"{len(fields)} fields instead of an image id and its code"))
        elif not fields[0]:
            faults.append(Fault("form", number, "no image id"))
        else:
            image_id = fields[0].strip()
            if fields[0] != image_id:
                faults.append(Fault("form", number, f"a blank before or after the image id {image_id}"))
            rows.append((number, image_id, fields[1]))
    codes: dict[str, list[tuple[int, str]]] = {}
    for number, image_id, code in rows:
        codes.setdefault(image_id, []).append((number, code))
    if dialect := rle.file_dialect((number, code) for number, _, code in rows):
        line, kind = dialect
        faults.append(Fault("dialect", line, f"the file's codes seem to be {kind}. {labels.WAY_OUT[kind]}"))
    else:
        for number, image_id, code in rows:
            faults += [] if code == EMPTY else _check_code(number, image_id, code, size)
        for image_id, of_image in codes.items():
            faults += _check_rows(image_id, of_image, size) if len(of_image) > 1 else []
    if not rows:
        faults.append(Fault("form", 0, "there are no images"))
    if sample is not None:
        faults += _compare([(of_image[0][0], image_id) for image_id, of_image in codes.items()], _sample_ids(sample))
    return sorted(faults, key=lambda fault: fault.row or len(rows) + 2)


def _read(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields row numbers and fields, without blanks around all fields but the id. Skips empty rows after row 1."""
    with labels.open_csv(path) as reader:
        for fields in reader:
            if fields or reader.line_num == 1:
                yield reader.line_num, [fields[0] if fields[0].strip() else "", *map(str.strip, fields[1:])]


def _sample_ids(path: Path) -> dict[str, int]:
    """The images of the sample and their positions."""
    rows = [[field.strip() for field in fields] for _, fields in _read(path)]
    if not rows or not rows[0] or rows[0][0] != HEADER[0]:
        raise InputError(f"{path} is not a sample submission: it must begin with the header {','.join(HEADER)}.")
    return {image_id: place for place, image_id in enumerate(dict.fromkeys(fields[0] for fields in rows[1:] if fields))}


def _check_code(number: int, image_id: str, code: str, size: tuple[int, int] | None) -> list[Fault]:
    try:
        rle.area(code, *(size or (1 << 31, 1 << 31)))
    except ValueError as error:
        kind = "range" if "leaves the image" in str(error) else "code"
        return [Fault(kind, number, f"image {image_id}: {error}")]
    if not CODE.fullmatch(code):
        return [Fault("code", number, f"image {image_id}: put exactly one blank between the numbers of its code")]
    return []


def _check_rows(image_id: str, rows: list[tuple[int, str]], size: tuple[int, int] | None) -> list[Fault]:
    """Checks the rows of one image against each other."""
    faults = []
    first: dict[str, int] = {}
    for number, code in rows:
        if code in first:
            faults.append(Fault("double", number, f"image {image_id} has the same code in row {first[code]}"))
        elif (code == EMPTY) != (rows[0][1] == EMPTY):
            faults.append(Fault("mixed", number, f"image {image_id} has {EMPTY} and runs, see row {rows[0][0]}"))
        first.setdefault(code, number)
    runs = [
        (start, stop, number)
        for code, number in first.items()
        if code != EMPTY and not _check_code(number, image_id, code, size)
        for start, stop in _runs(code)
    ]
    end, of_row, told = 0, 0, set()
    for start, stop, number in sorted(runs):
        if start < end and number != of_row and (of_row, number) not in told:
            told.add((of_row, number))
            text = f"image {image_id}: pixels from {start} on are in row {min(of_row, number)} too"
            faults.append(Fault("overlap", max(of_row, number), text))
        if stop > end:
            end, of_row = stop, number
    return faults


def _runs(code: str) -> list[tuple[int, int]]:
    """The first pixel of each run, and the pixel after its last."""
    edges = np.cumsum(np.array(code.split(), np.int64))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))


def _compare(images: list[tuple[int, str]], sample: dict[str, int]) -> list[Fault]:
    """Compares the images, each with its first row, with the sample's images and positions."""
    if images and sample and not any(image_id in sample for _, image_id in images):
        text = f"none of the images is in the sample: an id is {images[0][1]}, the sample's first {next(iter(sample))}"
        return [Fault("unknown", images[0][0], text)]
    faults, furthest, before = [], -1, ""
    for number, image_id in images:
        if image_id not in sample:
            faults.append(Fault("unknown", number, f"image {image_id} is not in the sample"))
        elif sample[image_id] < furthest:
            faults.append(Fault("order", number, f"image {image_id} comes before {before} in the sample"))
        else:
            furthest, before = sample[image_id], image_id
    there = {image_id for _, image_id in images}
    missing = [image_id for image_id in sample if image_id not in there]
    return faults + [Fault("missing", 0, f"image {image_id} is in the sample only") for image_id in missing]


def _size(text: str) -> tuple[int, int] | None:
    if text == "any":
        return None
    try:
        height, width = (int(side) for side in text.lower().split("x"))
        if not (1 <= height <= 65535 and 1 <= width <= 65535):
            raise ValueError
    except ValueError:
        sides = f"{as_typed(text)} cannot be used; give HEIGHTxWIDTH such as 1024x1024, each from 1 to 65535, or any"
        raise argparse.ArgumentTypeError(sides) from None
    return height, width


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP. Returns 0 for a valid submission, else 2."""
    parser = Parser(prog="jaxpneumo validate", description=HELP)
    parser.add_argument("--submission", type=places.path, required=True, help="csv file; may end in .gz")
    parser.add_argument("--sample", type=places.path, help="csv with the images that must be there, in this order")
    parser.add_argument(
        "--size", type=_size, default=(1024, 1024), help="size of all images (default: 1024x1024), or any"
    )
    parser.add_argument(
        "--show", type=whole(0, 10**9), default=10, metavar="N", help="faults to print of each kind (default: 10)"
    )
    options = parser.parse_args(arguments)
    faults = validate(options.submission, options.sample, options.size)
    shown: Counter[str] = Counter()
    for fault in faults:
        shown[fault.kind] += 1
        if shown[fault.kind] <= options.show:
            place = f"row {fault.row}: " if fault.row else ""
            print(f"{fault.kind:8} {place}{fault.text}")
    if not faults:
        print(f"{options.submission} is a valid submission.")
        return DONE
    counts = ", ".join(f"{count} {kind}" for kind, count in shown.items())
    way_out = ""
    if shown["range"] and options.size:
        way_out = " (if images are not {}x{}: --size any)".format(*options.size)
    print(f"{options.submission} is not valid: {counts}{way_out}.")
    return BAD_INPUT

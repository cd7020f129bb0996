"""`jaxpneumo verify`: checks that a prepared data set is still as `jaxpneumo prepare` made it.

Every file is read once. Each file is compared with its sha256 in dataset.json, each row of each array with its
CRC-32 in checksums.csv (which finds the damaged image), and each mask bit for bit with labels.csv. dataset.json has a
checksum of itself, and so has splits.json, also as `jaxpneumo split` leaves it (`sealed`). One row is in memory at a
time.
"""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jaxpneumo.data import dataset, labels, rle, splits
from jaxpneumo.dicom.radiograph import MAX_PIXELS
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, FAILED, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.sealed import KEY, is_intact

if TYPE_CHECKING:
    from tqdm import tqdm

TABLES = ("index.csv", "labels.csv", "quarantine.csv")
CHANGED = "has changed since it was prepared"
SHOWN = 20  # problems printed of one file


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and with which image where that can be told."""

    file: str
    what: str
    row: int | None = None
    image_id: str = ""

    def __str__(self) -> str:
        where = "" if self.row is None else f", row {self.row}"
        return f"{self.file}{where}{f' ({self.image_id})' if self.image_id else ''}: {self.what}"


@dataclass(frozen=True)
class _Truth:
    """What the tables say about the images: their ids by row, and what their masks are made of."""

    names: dict[int, str]
    masks: dict[int, tuple[str, int, int]]  # code, height, width
    positive: int  # images of index.csv with a mask


def verify(directory: Path | str, quiet: bool = False) -> list[Problem]:
    """Checks a prepared data set.

    Args:
      directory: as `jaxpneumo prepare` leaves it.
      quiet: no progress bar.

    Returns:
      The problems, none for an undamaged data set.

    Raises:
      InputError: the folder is no prepared data set, or one of another format.
    """
    directory = Path(directory)
    if (problem := _check_info(directory / "dataset.json")) is not None:
        return [problem]
    info = dataset.read_info(directory)
    count, sizes, digests = info["counts"]["images"], info["sizes"], info["sha256"]
    arrays = dataset.array_files(directory, count, sizes)

    problems = _check_seal(directory / "dataset.json")
    problems += [
        Problem("dataset.json", f"has no sha256 of {name}, which therefore cannot be trusted")
        for name in [*TABLES, *(path.name for path, _ in arrays)]
        if name not in digests
    ]
    array_names = {path.name for path, _ in arrays}
    for name in sorted(digests.keys() - array_names):
        problems += _check_file(directory / name, digests)
    damaged = {problem.file for problem in problems}
    checksums: dict[str, list[str]] = {}
    if "checksums.csv" in digests and "checksums.csv" not in damaged:
        rows = [row for _, row in labels.read_rows(directory / "checksums.csv", ("row",))]
        checksums = {stem: [row[stem] for row in rows] for stem in rows[0]} if len(rows) == count > 0 else {}
    truth, found = _check_tables(directory, count)
    problems += found
    if not any(problem.file in TABLES for problem in problems):
        problems += _check_counts(directory, info["counts"], truth)

    with progress_bar(total=count * len(arrays), unit="row", description="verify", quiet=quiet) as bar:
        for path, shape in arrays:
            expected = (lambda row, size=shape[1]: _bits(truth, row, size)) if path.name.startswith("masks") else None
            problems += _check_array(path, shape, digests, checksums.get(path.stem), truth.names, expected, bar)
    if not any(problem.file in ("index.csv", "labels.csv") for problem in problems):
        problems += _check_splits(directory, KEY in info)
    return problems


def unsealed(directory: Path | str) -> list[str]:
    """The files of an undamaged data set that have no checksum of their own, as an earlier jaxpneumo left them."""
    files = (Path(directory) / name for name in ("dataset.json", "splits.json"))
    return [path.name for path in files if path.is_file() and is_intact(path) is None]


def _check_info(path: Path) -> Problem | None:
    """dataset.json has the entries that the other checks need, and no others; `dataset.read_info` does the rest."""
    if not path.is_file():
        return None
    try:
        info = read_json(path)
    except InputError as error:
        return Problem(path.name, f"cannot be understood: {error}")
    if not isinstance(info, dict) or info.get("format_version") != dataset.FORMAT_VERSION:
        return None
    if wrong := dataset.wrong_entries(info):
        return Problem(path.name, f"lacks entries, or they are damaged: {', '.join(wrong)}")
    if strange := info.keys() - dataset.ENTRIES.keys() - {"format_version", KEY}:
        return Problem(path.name, f"has entries of other names: {', '.join(map(repr, sorted(strange)))}")
    return None


def _check_seal(path: Path) -> list[Problem]:
    """The checksum that a file has of itself."""
    return [Problem(path.name, "has changed since it was written")] if is_intact(path) is False else []


def _check_counts(directory: Path, counts: dict[str, int], truth: _Truth) -> list[Problem]:
    """The counts of dataset.json, where the tables are whole; the number of images is compared with all of them."""
    there = {"positive": truth.positive}
    there["set_aside"] = sum(1 for _ in labels.read_rows(directory / "quarantine.csv", ("reason",)))
    return [
        Problem("dataset.json", f"says {name} {counts[name]}, and the tables {count}")
        for name, count in there.items()
        if counts[name] != count
    ]


def _check_file(path: Path, digests: dict[str, str]) -> list[Problem]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return [Problem(path.name, f"cannot be read: {error.strerror}")]
    if digest == digests[path.name]:
        return []
    return [Problem(path.name, _owner(path.name, digest, digests) or CHANGED)]


def _owner(name: str, digest: str, digests: dict[str, str]) -> str:
    """Words for a file that has the checksum of another file; "" for all others."""
    owners = [other for other, its in digests.items() if its == digest and other != name]
    return f"holds what belongs in {owners[0]}: the files have been swapped or copied" if owners else ""


# The tables against each other


def _check_tables(directory: Path, count: int) -> tuple[_Truth, list[Problem]]:
    problems: list[Problem] = []
    lines: dict[int, dict[str, Any]] = {}
    for number, row in _read(directory / "index.csv", tuple(dataset.COLUMNS), problems):
        try:
            line: dict[str, Any] = row | {name: labels.whole_number(row[name]) for name in ("row", *dataset.WHOLE)}
        except ValueError as error:
            problems.append(Problem("index.csv", f"line {number} cannot be understood ({error})"))
            continue
        if line["row"] in lines or not 0 <= line["row"] < count:
            problem = "is there twice" if line["row"] in lines else f"is not one of {count} images"
            problems.append(Problem("index.csv", f"line {number}: row {line['row']} {problem}", None, row["ImageId"]))
        else:
            lines[line["row"]] = line
    codes = [
        (row["ImageId"], row["EncodedPixels"])
        for _, row in _read(directory / "labels.csv", ("ImageId", "EncodedPixels"), problems)
    ]

    names = {row: image_id for row, (image_id, _) in enumerate(codes)} if len(codes) == count else {}
    names |= {row: line["ImageId"] for row, line in lines.items()}
    missing = [row for row in range(count) if row not in lines]
    problems += [Problem("index.csv", "has no line for this image", row, names.get(row, "")) for row in missing]
    known = {line["ImageId"] for line in lines.values()} | {names[row] for row in missing if row in names}
    for image_id, times in Counter(image_id for image_id, _ in codes).items():
        if image_id not in known:
            problems.append(Problem("labels.csv", "names an image that index.csv does not have", None, image_id))
        elif times > 1:
            problems.append(Problem("labels.csv", f"has {times} lines for this image", None, image_id))

    code_of, masks = dict(codes), {}
    for row, line in lines.items():
        image_id, height, width = line["ImageId"], line["height"], line["width"]
        if image_id not in code_of:
            problems.append(Problem("labels.csv", "has no line for this image", row, image_id))
        elif height < 1 or width < 1 or height * width > MAX_PIXELS:
            problems.append(Problem("index.csv", f"has a size of {height} x {width} pixels", row, image_id))
        else:
            try:
                area = rle.area(code_of[image_id], height, width)
            except ValueError as error:
                problems.append(Problem("labels.csv", str(error), row, image_id))
                continue
            if (area, area > 0) != (line["mask_area"], line["label_rows"] > 0):
                what = f"gives a mask of {area} pixels, index.csv {line['mask_area']} in {line['label_rows']} rows"
                problems.append(Problem("labels.csv", what, row, image_id))
            masks[row] = code_of[image_id], height, width
    return _Truth(names, masks, sum(line["mask_area"] > 0 for line in lines.values())), problems


def _read(path: Path, columns: tuple[str, ...], problems: list[Problem]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table; of a damaged one the readable rows before the damage, and a problem."""
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        rows.extend(labels.read_rows(path, columns))
    except InputError as error:
        problems.append(Problem(path.name, str(error)))
    return rows


# The arrays


def _bits(truth: _Truth, row: int, size: int) -> np.ndarray | None:
    """The packed mask that the tables give; None where they give none."""
    if row not in truth.masks:
        return None
    code, height, width = truth.masks[row]
    if code == rle.EMPTY:
        return np.zeros((size, size // 8), np.uint8)
    return dataset.reduce_mask(rle.decode(code, height, width), size)


def _check_array(
    path: Path,
    shape: tuple[int, int, int],
    digests: dict[str, str],
    checksums: list[str] | None,
    names: dict[int, str],
    expected: Callable[[int], np.ndarray | None] | None,
    bar: "tqdm",
) -> list[Problem]:
    """One pass over an array's file; `expected` gives a row of the masks, `checksums` what every row should have."""
    count, row_bytes = shape[0], math.prod(shape[1:])
    changed: dict[int, str] = {}
    differs: dict[int, str] = {}
    digest, row = hashlib.sha256(), None
    try:
        with open(path, "rb") as file:
            header, wrong = _header(file, shape)
            digest.update(header)
            for row in range(0 if wrong else count):
                data = file.read(row_bytes)
                digest.update(data)
                if len(data) < row_bytes:
                    wrong = f"is cut off: {row} of {count} images are whole"
                    break
                if checksums is not None and dataset.row_checksum(data) != checksums[row]:
                    changed[row] = CHANGED
                if expected is not None and (bits := expected(row)) is not None:
                    difference = np.frombuffer(data, np.uint8).reshape(bits.shape) ^ bits
                    if difference.any():
                        differs[row] = _difference(difference)
                bar.update()
            end = file.tell()
            while data := file.read(1 << 20):
                digest.update(data)
            if not wrong and file.tell() > end:
                wrong = f"has {file.tell() - end} bytes too many"
    except OSError as error:
        return [Problem(path.name, f"cannot be read: {error.strerror}", row, "" if row is None else names.get(row, ""))]

    if digest.hexdigest() == digests.get(path.name) and not wrong:
        return _of_rows(path, differs, names)
    if owner := _owner(path.name, digest.hexdigest(), digests):
        return [Problem(path.name, owner)]
    if count > 1 and len(changed) == count:
        return [Problem(path.name, "names none of the prepared images: does it belong to another data set?")]
    both = {row: "; ".join(what[row] for what in (changed, differs) if row in what) for row in changed | differs}
    found = [Problem(path.name, wrong)] if wrong else []
    if not both and not wrong:
        found = [Problem(path.name, f"{CHANGED}; the image cannot be named" if checksums is None else CHANGED)]
    return found + _of_rows(path, both, names)


def _of_rows(path: Path, what: dict[int, str], names: dict[int, str]) -> list[Problem]:
    return [Problem(path.name, text, row, names.get(row, "")) for row, text in sorted(what.items())]


def _header(file: IO[bytes], shape: tuple[int, int, int]) -> tuple[bytes, str]:
    """The bytes before an array's first row, and what is wrong with them: "" for nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(file)
            actual, _, dtype = np.lib.format.read_array_header_1_0(file)
        wrong = "" if version == (1, 0) else f"has NumPy's format {version}"
        if (actual, dtype) != (shape, np.uint8):
            wrong = f"is {dtype} {actual}; dataset.json says uint8 {shape}"
    except OSError:
        raise
    except Exception:  # a damaged header makes NumPy raise almost anything
        wrong = "has a damaged header"
    length = file.tell()
    file.seek(0)
    return file.read(length), wrong


def _difference(bits: np.ndarray) -> str:
    rows, columns = np.nonzero(np.unpackbits(bits, axis=-1))
    return f"{rows.size} pixels are not those of labels.csv, first row {rows[0]}, column {columns[0]} of the mask"


def _check_splits(directory: Path, sealed: bool) -> list[Problem]:
    """splits.json names images of the index, and is as it was written; `sealed`: it needs a checksum of its own."""
    path = directory / "splits.json"
    if not path.is_file():
        return []
    try:
        index = dataset.read_index(directory)
        for fold in range(splits.read_splits(path).get("folds", 1)):
            splits.split_rows(index, path, 0.0, 0, fold)
    except InputError as error:
        return [Problem(path.name, str(error))]
    if sealed and is_intact(path) is None:
        return [Problem(path.name, "has no checksum of its own, so neither `prepare` nor `split` left it so")]
    return _check_seal(path)


# The verb


def main(argv: list[str]) -> int:
    """`jaxpneumo verify`; returns the exit code. Raises InputError when there is no data set to check."""
    args = _parser().parse_args(argv)
    problems = verify(args.data)
    if not problems:
        info = dataset.read_info(args.data)
        sizes = ", ".join(map(str, info["sizes"]))
        print(f"{args.data}: {info['counts']['images']} images at {sizes} pixels are as they were prepared.")
        if bare := unsealed(args.data):
            print(
                f"{' and '.join(bare)} of an earlier jaxpneumo without a checksum of their own are compared with the "
                "tables and arrays alone."
            )
        return DONE
    for file, count in Counter(problem.file for problem in problems).items():
        print("\n".join([str(problem) for problem in problems if problem.file == file][:SHOWN]))
        if count > SHOWN:
            print(f"{file}: and {count - SHOWN} more problems")
    print(f"{args.data} is damaged, problems found: {len(problems)}. {_advice(args.data, problems)}")
    return FAILED


def _advice(directory: Path, problems: list[Problem]) -> str:
    files = sorted({problem.file for problem in problems})
    advice = []
    if "splits.json" in files:
        files.remove("splits.json")
        advice.append(f"`jaxpneumo split --data {directory} --overwrite` makes a new splits.json.")
    if files:
        advice.append(
            f"Do not train on it. Restore {', '.join(files)} from a copy (dataset.json has each sha256), or remove "
            "the folder and make it again with `jaxpneumo prepare`. Then check the disk. Repeat all training and "
            "evaluation on these images since the last `jaxpneumo verify` without problems."
        )
    return " ".join(advice)


def _parser() -> Parser:
    parser = Parser(
        prog="jaxpneumo verify",
        description="Checks that a prepared data set is undamaged: shapes, checksums, every mask against its label.",
        epilog="""example:
  jaxpneumo verify --data data/siim

exit codes: 0 undamaged; 1 damaged, the output says where and what to do; 2 not a prepared data set""",
    )
    parser.add_argument("--data", type=places.path, required=True, metavar="DIR", help="prepared data set")
    return parser

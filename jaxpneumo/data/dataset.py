"""The prepared data set: the folder that `jaxpneumo prepare` writes and everything else reads.

| file | content |
| --- | --- |
| images_<size>.npy | uint8 (N, size, size), one row an image, in the order of index.csv |
| masks_<size>.npy | uint8 (N, size, size / 8), bits as `np.packbits(axis=-1)` gives them |
| index.csv | one line an image: the columns below |
| labels.csv | ImageId,EncodedPixels at native size, one line an image: all its rows together |
| splits.json | image ids for training and for validation |
| checksums.csv | CRC-32 of every row of every array, to tell which image has been damaged |
| dataset.json | format version, counts, sizes, how it was made, sha256 of the files, its own checksum |
| quarantine.csv | what was set aside, and why |
"""

import csv
import errno
import hashlib
import math
import os
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import jaxpneumo
from jaxpneumo.data import labels
from jaxpneumo.process import run_report
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.sealed import write_sealed

FORMAT_VERSION = 1
BYTES_AT_ONCE = {1: np.uint8(1), 2: np.uint16(0x0101), 4: np.uint32(0x01010101), 8: np.uint64(0x0101010101010101)}
TEXT = ("ImageId", "patient", "sex", "view", "source", "sha256")
WHOLE = ("height", "width", "mask_area", "label_rows")
COLUMNS = [
    *("row", "ImageId", "patient", "sex", "age", "view", "height", "width"),
    *("mask_area", "label_rows", "source", "sha256"),
]
# Of dataset.json, besides format_version and its checksum.
ENTRIES = {"software": str, "synthetic": bool, "counts": dict, "sizes": list, "made_from": dict, "sha256": dict}
COUNTS = ("images", "positive", "set_aside")
# Millimetres between rows and between columns; optional columns.
SPACING = ["row_spacing", "column_spacing"]


@dataclass(frozen=True)
class Index:
    """index.csv, an array of length N a column.

    Attributes:
      image_id: str, SOP instance UID or the label file's own id; ascending.
      patient: str, a keyed hash that is the same for images of the same patient, "" = unknown.
      sex: str, "F", "M", "O" or "".
      age: float64, years, nan = unknown.
      view: str, "AP", "PA" or what the header says, "" = unknown.
      height, width: int64, native size in pixels.
      mask_area: int64, native pixels of the mask.
      label_rows: int64, rows of the label file that hold a region; 0 for "-1".
      source: str, the image's file below the images folder.
      sha256: str, of that file.
    """

    image_id: np.ndarray
    patient: np.ndarray
    sex: np.ndarray
    age: np.ndarray
    view: np.ndarray
    height: np.ndarray
    width: np.ndarray
    mask_area: np.ndarray
    label_rows: np.ndarray
    source: np.ndarray
    sha256: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def positive(self) -> np.ndarray:
        """(N,) bool: the image has a mask."""
        return self.mask_area > 0


def read_info(directory: Path | str) -> dict[str, Any]:
    """dataset.json.

    Raises:
      InputError: the folder is not a prepared data set of this format, or entries of the file are missing or damaged.
    """
    path = Path(directory) / "dataset.json"
    if not path.is_file():
        raise InputError(
            f"{directory} is not a prepared data set; make one with "
            "`jaxpneumo prepare --images DIR --labels CSV --output DIR`."
        )
    info = read_json(path)
    version = info.get("format_version") if isinstance(info, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{directory} has format {version}; this jaxpneumo reads {FORMAT_VERSION}. Prepare it again.")
    if wrong := wrong_entries(info):
        raise InputError(
            f"{path} is damaged: {', '.join(wrong)} cannot be used. Restore it from a copy, or prepare the data set "
            "again."
        )
    run_report.read(directory)
    return info


def wrong_entries(info: dict[str, Any]) -> list[str]:
    """The names of the entries of dataset.json that are missing or damaged."""

    def are(kind: type, values: Any) -> bool:
        return all(type(value) is kind for value in values)

    def has(name: str, kind: type) -> bool:
        return type(info.get(name)) is kind

    valid = {name: has(name, kind) for name, kind in ENTRIES.items()}
    if valid["counts"]:
        counts = [info["counts"].get(name) for name in COUNTS]
        valid["counts"] = are(int, counts) and min(counts) >= 0
    if valid["sizes"]:
        valid["sizes"] = bool(info["sizes"]) and are(int, info["sizes"]) and min(info["sizes"]) >= 8
    if valid["sha256"]:
        digests = info["sha256"]
        valid["sha256"] = are(str, digests.values()) and all(Path(name).name == name for name in digests)
    return [name for name, good in valid.items() if not good]


def sha256_of(info: dict[str, Any], name: str) -> str:
    """The checksum of a file in the result of `read_info`. Raises InputError when there is none."""
    if name not in info["sha256"]:
        raise InputError(f"dataset.json has no sha256 of {name}, so it is damaged. `jaxpneumo verify` says more.")
    return info["sha256"][name]


def write_info(
    directory: Path | str,
    sizes: tuple[int, ...],
    images: int,
    positive: int,
    set_aside: int,
    synthetic: bool,
    made_from: dict[str, Any],
) -> None:
    """Writes checksums.csv, and dataset.json with the sha256 of all files there: to be called after them."""
    _write_checksums(directory, images, sizes)
    files = sorted(Path(directory).iterdir())
    info = {
        "format_version": FORMAT_VERSION,
        "software": f"jaxpneumo {jaxpneumo.__version__}",
        "synthetic": synthetic,
        "counts": dict(zip(COUNTS, (images, positive, set_aside), strict=True)),
        "sizes": list(sizes),
        "made_from": made_from,
        "sha256": {path.name: _sha256(path) for path in files},
    }
    write_sealed(Path(directory) / "dataset.json", info)


def read_index(directory: Path | str) -> Index:
    """index.csv as arrays. Raises InputError when the folder is not a whole prepared data set."""
    info = read_info(directory)
    path = Path(directory) / "index.csv"
    rows = [row for _, row in labels.read_rows(path, tuple(COLUMNS))]
    count = info["counts"]["images"]
    if len(rows) != count:
        raise InputError(f"{path} has {len(rows)} images, dataset.json {count}. Prepare the data set again.")
    try:
        whole = {name: np.array([labels.whole_number(row[name]) for row in rows], np.int64) for name in WHOLE}
        age = np.array([labels.whole_number(row["age"]) if row["age"] else np.nan for row in rows], float)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Prepare the data set again.") from error
    text = {name.replace("ImageId", "image_id"): np.array([row[name] for row in rows], str) for name in TEXT}
    return Index(age=age, **text, **whole)


def read_spacing(directory: Path | str) -> np.ndarray:
    """(N, 2) float64 PixelSpacing of the images in index.csv, millimetres between rows and columns; nan: unknown."""
    path = Path(directory) / "index.csv"
    rows = [row for _, row in labels.read_rows(path, ("ImageId",))]
    try:
        return np.array([[float(row.get(name) or "nan") for name in SPACING] for row in rows]).reshape(-1, 2)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Prepare the data set again.") from error


def write_index(directory: Path | str, rows: list[dict[str, Any]]) -> None:
    """Writes index.csv: dictionaries with every column but `row`, with or without SPACING; None: an empty value."""
    columns = [*COLUMNS, *(name for name in SPACING if any(name in row for row in rows))]
    _write_csv(Path(directory) / "index.csv", columns, [{"row": n, **row} for n, row in enumerate(rows)])


def read_labels(directory: Path | str) -> dict[str, str]:
    """labels.csv: ImageId -> run-length code at native size ("-1": negative), in the index's order."""
    read_info(directory)
    rows = labels.read_rows(Path(directory) / "labels.csv", ("ImageId", "EncodedPixels"))
    return {row["ImageId"]: row["EncodedPixels"] for _, row in rows}


def write_labels(directory: Path | str, codes: dict[str, str]) -> None:
    """Writes labels.csv from ImageId -> run-length code."""
    rows = [{"ImageId": image_id, "EncodedPixels": code} for image_id, code in codes.items()]
    _write_csv(Path(directory) / "labels.csv", ["ImageId", "EncodedPixels"], rows)


def write_quarantine(directory: Path | str, rows: list[dict[str, str]], name: str = "quarantine.csv") -> None:
    """Writes quarantine.csv: dictionaries with file, ImageId, reason, detail."""
    for row in rows:
        run_report.set_aside(row["file"], row["reason"])
    _write_csv(Path(directory) / name, ["file", "ImageId", "reason", "detail"], rows)


def check_sizes(directory: Path | str, sizes: Collection[int], way_out: str = "") -> None:
    """Raises InputError, naming all missing ones, unless a prepared data set has arrays of these sizes.

    Args:
      directory: of the data set.
      sizes: side lengths that are needed.
      way_out: what the user can do about it; by default to prepare a new folder.
    """
    has = read_info(directory)["sizes"]
    if missing := sorted(set(sizes) - set(has)):
        needed = ",".join(map(str, sorted(set(sizes))))
        raise InputError(
            f"{directory} has no arrays of size {' or '.join(map(str, missing))}: it has {', '.join(map(str, has))}. "
            + (way_out or f"Prepare into a new folder with --sizes {needed}, and name that folder instead.")
        )


def open_arrays(directory: Path | str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Opens images and bit-packed masks of one size, memory-mapped and read-only.

    Returns:
      uint8 (N, size, size) and uint8 (N, size, size / 8); `np.unpackbits(masks[i], axis=-1)` gives 0/1.

    Raises:
      InputError: not a prepared data set, without this size, or damaged.
    """
    check_sizes(directory, (size,))
    arrays = []
    for path, shape in array_files(directory, read_info(directory)["counts"]["images"], (size,)):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header makes NumPy raise almost anything
            raise InputError(f"{path} is missing or damaged ({error}). `jaxpneumo verify` says more.") from error
        if array.dtype != np.uint8 or array.shape != shape:
            raise InputError(f"{path} does not fit dataset.json: {array.dtype} {array.shape}. Prepare again.")
        arrays.append(array)
    return arrays[0], arrays[1]


def reduce_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A native mask as the arrays hold it: area average, then >= 0.5, then bits.

    Args:
      mask: (H, W) uint8 0/1; fastest where it lies column by column in memory, as `labels.mask` gives it.
      size: side length of the arrays, a multiple of 8.

    Returns:
      uint8 (size, size / 8).
    """
    height, width = mask.shape
    step = width // size
    if not (height == width == step * size and step in BYTES_AT_ONCE):
        # Not in bytes, which would be rounded before the threshold.
        share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        return np.packbits(share >= 0.5, axis=-1)
    inside = np.zeros((size, size), bool)
    columns = np.ascontiguousarray(mask.T)
    touched = np.flatnonzero(np.bitwise_or.reduce(columns.view(np.uint64), axis=1))
    if touched.size:
        # Masks are small: only result columns that can hold a part of the mask are computed.
        first, end = touched[0] // step, touched[-1] // step + 1
        band = columns[first * step : end * step]
        sums = band[::step].copy()
        for place in range(1, step):
            sums += band[place::step]
        # The highest byte of the product is the sum of neighbouring bytes.
        sums = (sums.view(f"<u{step}") * BYTES_AT_ONCE[step] >> 8 * (step - 1)).astype(np.uint8)
        inside[:, first:end] = cv2.transpose(sums) >= (step**2 + 1) // 2
    return np.packbits(inside, axis=-1)


def create_arrays(directory: Path | str, count: int, sizes: Sequence[int]) -> None:
    """Makes the files of all arrays for `count` images. They are sparse: zeros that take no disk space yet."""
    for path, shape in array_files(directory, count, sizes):
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        run_report.wrote(path)


@dataclass(frozen=True)
class RowFile:
    """The file of one array, for single rows from any process.

    The file is not mapped into memory. Mapped pages count as memory of the process, and a full disk would kill
    the process instead of raising an error.
    """

    descriptor: int
    start: int
    row_bytes: int

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes one row; raises OSError when the disk is full."""
        if os.pwrite(self.descriptor, values.data, self.start + row * self.row_bytes) != self.row_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, row: int) -> bytes:
        """The bytes of one row."""
        return os.pread(self.descriptor, self.row_bytes, self.start + row * self.row_bytes)

    def close(self) -> None:
        """Brings what was written to the disk and closes the file."""
        os.fsync(self.descriptor)
        os.close(self.descriptor)


def open_rows(directory: Path | str, sizes: Sequence[int]) -> dict[int, tuple[RowFile, RowFile]]:
    """The arrays of `create_arrays` row by row, images and masks of every size."""
    files = {}
    for path, _ in array_files(directory, 0, sizes):
        header = np.lib.format.open_memmap(path, "r")
        files[path.stem] = RowFile(os.open(path, os.O_RDWR), header.offset, math.prod(header.shape[1:]))
    return {size: (files[f"images_{size}"], files[f"masks_{size}"]) for size in sizes}


def copy_rows(source: Path, target: Path, rows: list[int], count: int, sizes: Sequence[int]) -> None:
    """Arrays with the given rows only, in their order, from arrays made for `count` images.

    Where no row moves, the files are hard links and take no further space.
    """
    if rows == list(range(count)):
        for path, _ in array_files(source, count, sizes):
            os.link(path, target / path.name)
        return
    create_arrays(target, len(rows), sizes)
    old, new = open_rows(source, sizes), open_rows(target, sizes)
    for size in sizes:
        for origin, copy in zip(old[size], new[size], strict=True):
            for to, row in enumerate(rows):
                copy.write(to, np.frombuffer(origin.read(row), np.uint8))
            copy.close()
            origin.close()


def array_files(directory: Path | str, count: int, sizes: Sequence[int]) -> list[tuple[Path, tuple[int, int, int]]]:
    """The files of all arrays and the shapes they have for `count` images: images, then masks, of every size."""
    files = []
    for size in sizes:
        files.append((Path(directory) / f"images_{size}.npy", (count, size, size)))
        files.append((Path(directory) / f"masks_{size}.npy", (count, size, size // 8)))
    return files


def row_checksum(data: bytes | np.ndarray) -> str:
    """CRC-32 of one row of an array, as in checksums.csv. It names the damaged row; sha256 protects the whole file."""
    return f"{zlib.crc32(data if isinstance(data, bytes) else data.data):08x}"


def _write_checksums(directory: Path | str, count: int, sizes: Sequence[int]) -> None:
    columns: dict[str, list[Any]] = {"row": list(range(count))}
    for path, shape in array_files(directory, count, sizes):
        with open(path, "rb") as file:
            file.seek(-math.prod(shape), os.SEEK_END)
            columns[path.stem] = [row_checksum(file.read(math.prod(shape[1:]))) for _ in range(count)]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    _write_csv(Path(directory) / "checksums.csv", list(columns), rows)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with write_atomically(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

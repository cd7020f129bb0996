"""Sorts rows on the disk, so that memory does not grow with their number."""

import heapq
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHUNK = 8 << 20  # largest number of characters that are sorted in memory at once


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder for sorting. The name is fixed, so leftovers of a killed process are removed too."""
    path = folder / ".sorting"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sort_rows(rows: Iterable[Sequence[str]], scratch: Path) -> Iterator[tuple[str, ...]]:
    """Yields sorted rows. At most about CHUNK characters are in memory at once; the rest is in files in `scratch`."""
    rows, sorted_files = iter(rows), []
    while chunk := sorted(_take(rows)):
        with tempfile.NamedTemporaryFile("w", dir=scratch, delete=False) as file:
            file.writelines(json.dumps(row) + "\n" for row in chunk)
        sorted_files.append(Path(file.name))
        del chunk
    yield from heapq.merge(*map(_read_rows, sorted_files))
    for path in sorted_files:
        path.unlink()


def _take(rows: Iterator[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    length = 0
    while length < CHUNK and (row := next(rows, None)) is not None:
        length += sum(map(len, row))
        yield tuple(row)


def _read_rows(path: Path) -> Iterator[tuple[str, ...]]:
    with open(path) as file:
        for line in file:
            yield tuple(json.loads(line))

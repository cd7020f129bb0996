"""Files of JSON lines that survive their process: a line is whole or it does not count.

A line goes to the system as soon as it is appended, so that a process that is killed (SIGKILL) loses none. After a
power failure the last lines may be missing, or be zeros. Reading therefore ends at the first line that is not a whole
JSON object.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from jaxpneumo.process.errors import InputError


def line(entry: dict[str, Any]) -> bytes:
    """An entry as the file holds it."""
    return json.dumps(entry).encode() + b"\n"


def read(lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """The entries up to the first broken line.

    Args:
      lines: with their ends, such as a file opened in mode "rb".

    Yields:
      An entry, and how many bytes all entries take up to here.
    """
    length = 0
    for each in lines:
        try:
            entry = json.loads(each) if each.endswith(b"\n") else None
        except ValueError:
            return
        if not isinstance(entry, dict):
            return
        length += len(each)
        yield entry, length


class Writer:
    """Appends entries to a file.

    Args:
      file: open in a binary mode.
      group: so many lines are forced to the disk together; None: the system writes them when it likes.
    """

    def __init__(self, file: IO[bytes], group: int | None = None):
        self._file = file
        self._group = group
        self._unsafe = 0

    def append(self, entry: dict[str, Any], safe: bool = False) -> None:
        """Writes an entry; `safe` forces it and all before it to the disk."""
        self._file.write(line(entry))
        self._file.flush()
        self._unsafe += 1
        if safe or self._unsafe == self._group:
            os.fsync(self._file.fileno())
            self._unsafe = 0


def lock(descriptor: int, folder: Path) -> None:
    """Takes a file or folder for this process until its descriptor is closed.

    Args:
      descriptor: of the open file or folder.
      folder: what the message calls it.

    Raises:
      InputError: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"{folder} is being filled by another process. Wait for it, or end it.") from None


def changes(before: dict[str, Any], now: dict[str, Any], width: int = 40) -> str:
    """What differs between two dictionaries of settings, in words; values are cut to `width` characters."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} {before.get(name)!s:.{width}}, now {now.get(name)!s:.{width}}" for name in names)

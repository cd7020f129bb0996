"""The journal of a preparation: what is finished, so that one that was killed goes on where it was.

A line of JSON an image, written when its rows are in the arrays. Rows go to the files by plain writes: what a
process has written so outlives the process, even one that is killed (SIGKILL), so nothing finished is done again.
When the machine itself stops, rows or lines may be lost; every line therefore holds its rows' checksum, and rows
that do not fit it are done again. A last line that was cut short is dropped.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpneumo.process.errors import InputError


@contextmanager
def open_journal(
    path: Path, settings: dict[str, Any], secret: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], Callable[[dict[str, Any]], None]]]:
    """Opens a journal, an older one of the same settings where there is one.

    Args:
      path: its file; the folder must exist. Only its owner can read it.
      settings: everything that decides what the rows hold; JSON.
      secret: kept with the journal and given back, whatever is passed the next time.

    Yields:
      The secret, the entries that are there already, and a function that adds one.

    Raises:
      InputError: the older journal has other settings, is in use, or is none.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with open(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path.parent} is being filled by another process. Wait for it, or end it.") from None
        entries, length = _read(file.read(), path)
        if entries:
            head, *entries = entries
            _compare(head["settings"], settings, path.parent)
            secret = head["secret"]
        file.seek(length)
        file.truncate()

        def append(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()

        if length == 0:
            append({"settings": settings, "secret": secret})
        yield secret, entries, append


def _read(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole entries of a journal and the bytes that they take."""
    length = data.rfind(b"\n") + 1
    lines = data[:length].splitlines()
    entries = []
    for number, line in enumerate(lines):
        try:
            entries.append(json.loads(line))
        except ValueError:
            # Zeros, where the machine stopped: what follows is no better.
            length = sum(len(line) + 1 for line in lines[:number])
            break
    if entries and set(entries[0]) != {"settings", "secret"}:
        raise InputError(f"{path} is not the journal of a preparation. Remove its folder or choose another --output.")
    return entries, length


def _compare(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if before != now:
        raise InputError(
            f"{folder} holds a preparation that was begun otherwise ({changes(before, now)}). Give what it was begun "
            "with to go on, or remove the folder to begin anew."
        )


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two dictionaries of settings, in words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} {before.get(name)!s:.40}, now {now.get(name)!s:.40}" for name in names)

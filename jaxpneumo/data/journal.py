"""The journal of a preparation: what is finished, so that one that was killed goes on where it was.

A JSON line an image (`process.jsonl`), written when its rows are in the arrays. Rows go to the files by plain writes:
what a process has written so outlives the process, even one that is killed (SIGKILL), so nothing finished is done
again. When the machine itself stops, rows may be lost; every line therefore holds its rows' checksum, and rows that do
not fit it are done again.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpneumo.data.repeat import differences
from jaxpneumo.process import jsonl
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
        jsonl.lock(descriptor, path.parent)
        found = list(jsonl.read(file))
        entries, length = [entry for entry, _ in found], found[-1][1] if found else 0
        if entries:
            head, *entries = entries
            _check_head(head, settings, path)
            secret = head["secret"]
        file.seek(length)
        file.truncate()
        writer = jsonl.Writer(file)
        if length == 0:
            writer.append({"settings": settings, "secret": secret})
        yield secret, entries, writer.append


def _check_head(head: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    if set(head) != {"settings", "secret"}:
        raise InputError(f"{path} is not the journal of a preparation. Remove its folder or choose another --output.")
    if head["settings"] != settings:
        raise InputError(
            f"{path.parent} holds a preparation that was begun otherwise "
            f"({differences(head['settings'], settings)}). Give what it was begun with to go on, or remove the "
            "folder to begin anew."
        )

"""Files that are either whole or absent: written under a temporary name, then renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxpneumo.process import run_report
from jaxpneumo.process.files import LONG


@contextmanager
def write_atomically(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` that takes its name when the block ends without an error.

    Args:
      path: the file to write; its folder is made when it is missing.
      mode: "w" for UTF-8 text (written as is, without newline translation) or "wb" for bytes.

    Yields:
      The open file. An exception in the block removes it and leaves an older `path` untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        run_report.wrote(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with write_atomically(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def take_name(made: Path, name: Path) -> None:
    """Gives a finished folder its name. The current folder, empty until now, stays itself: its name cannot be taken."""
    if not (name.is_dir() and name.samefile(".")):
        os.replace(made, name)
        return
    for path in made.iterdir():
        os.replace(path, name / path.name)
    made.rmdir()


def _temporary_name(name: str) -> str:
    """A name beside a file's own that is not too long where the file's is not."""
    encoded = os.fsencode(name)
    return f"{hashlib.sha256(encoded).hexdigest()[:32]}.tmp" if len(encoded) > LONG else f"{name}.tmp"

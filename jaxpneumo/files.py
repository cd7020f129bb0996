"""Files that are either whole or absent: written under a temporary name, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxpneumo import run_report
from jaxpneumo.errors import InputError


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
    temporary = path.with_name(path.name + ".tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:
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


def read_json(path: Path | str) -> Any:
    """Reads a JSON file. Raises InputError when it is missing or is not JSON."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Restore it or make it anew.") from error
    run_report.read(path)
    return value


def take_name(made: Path, name: Path) -> None:
    """Gives a finished folder its name. The current folder, empty until now, stays itself: its name cannot be taken."""
    if not (name.is_dir() and name.samefile(".")):
        os.replace(made, name)
        return
    for path in made.iterdir():
        os.replace(path, name / path.name)
    made.rmdir()

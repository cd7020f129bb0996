"""Files that are either whole or absent, written under a temporary name and then renamed; and what names may be."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxpneumo.process import run_report
from jaxpneumo.process.errors import InputError

LONG = 100  # bytes of a name; every file system allows more
# What cannot stand in a text file as it is: bytes that are no UTF-8 (as surrogates), control characters, blanks at the
# ends; and a backslash that would read as one of these.
_ODD = re.compile(r"[\udc80-\udcff]|[\x00-\x1f\x7f]|\A\s+|\s+\Z|\\(?=x[0-9a-f]{2})")
# Small letters alone, as some file systems hold "A" and "a" for one name; Windows keeps some names for itself.
_SAFE = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|\Z))[a-z0-9_][a-z0-9._-]*")
_DIGEST = 16  # hexadecimal digits


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


def printable(name: str) -> str:
    """A file's name or path as text that any file can hold; different names stay different.

    What is odd in a name becomes `\\xNN`, its bytes in hexadecimal digits: bytes that are no UTF-8, control characters,
    blanks at the ends. All other names, and that is nearly all, stay as they are.
    """
    return _ODD.sub(lambda odd: "".join(f"\\x{byte:02x}" for byte in os.fsencode(odd[0])), name)


def safe_name(text: str) -> str:
    """A name for a file about `text`, for every file system; different texts have different names.

    Args:
      text: any, such as an image's id.

    Returns:
      The text itself where it is short and of small letters, digits, dots, hyphens and underscores; else its
      beginning and a checksum of all of it. No ending is added.
    """
    looks_made = re.search(rf"-[0-9a-f]{{{_DIGEST}}}\Z", text)
    if _SAFE.fullmatch(text) and len(text) <= LONG and not looks_made:
        return text
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:_DIGEST]
    return f"{re.sub('[^A-Za-z0-9_-]', '_', text)[: LONG // 2]}-{digest}"


def _temporary_name(name: str) -> str:
    """A name beside a file's own that is not too long where the file's is not."""
    encoded = os.fsencode(name)
    return f"{hashlib.sha256(encoded).hexdigest()[:32]}.tmp" if len(encoded) > LONG else f"{name}.tmp"

"""What files hold and are called: JSON, whether a file is still the one read before, names that every system takes."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from jaxpneumo.process import run_report
from jaxpneumo.process.errors import InputError

LONG = 100  # bytes of a name; every file system allows more
# What cannot stand in a text file as it is: bytes that are no UTF-8 (as surrogates), control characters, blanks at the
# ends; and a backslash that would read as one of these.
_ODD = re.compile(r"[\udc80-\udcff]|[\x00-\x1f\x7f]|\A\s+|\s+\Z|\\(?=x[0-9a-f]{2})")
# Small letters alone, as some file systems hold "A" and "a" for one name; Windows keeps some names for itself.
_SAFE = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|\Z))[a-z0-9_][a-z0-9._-]*")
_DIGEST = 16  # hexadecimal digits


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


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """Tells whether a file is the one that was read before: its size in bytes, and two times in ns.

    The first is the time of change of its content, which archives and copies keep or set as they like. The second is
    the system's own, of any change at all: it tells two files of one name, size and time apart.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_unchanged(path: Path, before: Stamp) -> bool:
    """Whether a file is there and still has the stamp that it had before."""
    try:
        return stamp(path) == before
    except OSError:
        return False


def stamp_if_there(path: Path) -> Stamp:
    """The same; (0, 0, 0) where the file is gone or cannot be asked."""
    try:
        return stamp(path)
    except OSError:
        return 0, 0, 0


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, hexadecimal; "" where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


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

"""JSON files that carry a checksum of themselves, so that every changed bit is found."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.files import read_json

KEY = "checksum"  # SHA-256 of the file with zeros in the place of these digits
_ZEROS = "0" * 64


def write_sealed(path: Path | str, value: dict[str, Any]) -> None:
    """Writes `value` as `atomic.write_json` does, with the checksum as its last entry."""
    text = json.dumps({key: value[key] for key in value if key != KEY} | {KEY: _ZEROS}, indent=2) + "\n"
    before, _, after = text.rpartition(_ZEROS)
    with write_atomically(path) as file:
        file.write(before + _digest(text.encode()) + after)


def is_intact(path: Path | str) -> bool | None:
    """Whether a file is as `write_sealed` left it; None where it has no checksum.

    Raises:
      InputError: it is missing or is not JSON.
    """
    value = read_json(path)
    if not isinstance(value, dict) or KEY not in value:
        return None
    digest = str(value[KEY]).encode()
    before, found, after = Path(path).read_bytes().rpartition(digest)
    return bool(found) and _digest(before + _ZEROS.encode() + after) == value[KEY]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

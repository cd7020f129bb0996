"""Finds the files below a folder that may be radiographs, and names them: the same for every verb.

A file is taken if it has a known ending or none. For all others the first bytes decide. Links to folders are followed,
and no folder is searched twice. A taken file that is not a radiograph is set aside later, when it is read. Files left
out here are counted by reason, told in one line, and noted in the run report.
"""

import heapq
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jaxpneumo.dicom.codestream import PNG_SIGNATURE
from jaxpneumo.process import run_report
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable

ENDINGS = ("", ".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".jpe")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
# The output of `jaxpneumo predict`: its pictures are not radiographs. A folder with a MANIFEST is such an output.
MANIFEST = "manifest.jsonl"
OUTPUT_FOLDERS = ("overlays", "masks", "probabilities", "dicom_results")
OUTPUTS = re.compile(
    "|".join(OUTPUT_FOLDERS) + r"|submission\.csv|results\.csv|index\.html|quarantine\.csv|manifest\.jsonl|merged\.json"
    r"|run_report(_\d+)?\.json|\.sorting"
    r"|part-\d{5,}-of-\d{5,}"
)

HIDDEN = "hidden"
INDEX = "DICOMDIR"
OTHER = "not DICOM, PNG or JPEG by content"
ARCHIVE = "packed (unpack those that hold radiographs)"
BROKEN = "link to nothing"
NO_FILE = "neither file nor folder"
AGAIN = "link to a folder that is searched already"
OUTPUT = "output of jaxpneumo predict"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What `find` finds.

    Attributes:
      folder: that the files lie in.
      sources: their paths below it, with slashes, sorted. A folder that cannot be opened is among them, so that
        it is set aside with its reason.
      left_out: how many entries were left out, by reason.
      examples: the first of each, by reason.
    """

    folder: Path
    sources: list[str]
    left_out: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, source: str) -> None:
        """Counts an entry that is left out."""
        self.left_out[reason] += 1
        self.examples[reason] = min(self.examples.get(reason, source), source)


def find(where: Path, output: Path | None = None) -> Found:
    """The files below a folder that may be radiographs, or a single file.

    Args:
      where: a folder, searched at any depth, or a file.
      output: the folder that the results go to. It is not searched; where it is `where` itself, what `jaxpneumo
        predict` writes is left out.

    Raises:
      InputError: there are none.
    """
    if _mode(where, stat.S_ISREG):
        return Found(where.parent, [where.name])
    if not _mode(where, stat.S_ISDIR):
        raise InputError(f"{where} is neither a folder nor a file. Give the radiographs' folder, or one of them.")
    found = Found(where, [])
    own = _identity(output) if output and _mode(output, stat.S_ISDIR) else None
    # A link to a folder above the input would lead back into it.
    seen = {_identity(folder) for folder in where.resolve().parents}
    folders, links, linked = [""], [], False
    while folders or links:
        # Links last: a folder keeps its own path below `where` if it has one.
        linked = linked or not folders
        below = folders.pop() if folders else heapq.heappop(links)
        path = where / below
        identity = _identity(path)
        if linked and identity in seen:
            found.leave_out(AGAIN, below)
        elif identity == own and below:
            found.leave_out(OUTPUT, below)
        else:
            seen.add(identity)
            _search(found, path, below, identity == own, folders, links)
    found.sources.sort()
    told = _tell(found)
    if not found.sources:
        raise InputError(f"{where} holds no radiographs (DICOM, PNG or JPEG files). {told}Give the right folder.")
    if told:
        logger.warning("%s", told.strip())
    for reason, count in found.left_out.items():
        run_report.skipped(f"left out: {reason}", count)
    return found


def _search(found: Found, path: Path, below: str, own: bool, folders: list[str], links: list[str]) -> None:
    """Sorts the entries of one folder into files that are taken, those left out, folders, and links to folders."""
    prefix = below and f"{below}/"
    try:
        with os.scandir(path) as listing:
            entries = list(listing)
    except OSError:
        found.sources.append(below or ".")
        return
    own = own or any(entry.name == MANIFEST for entry in entries)
    for entry in entries:
        source = prefix + entry.name
        if own and OUTPUTS.fullmatch(entry.name):
            found.leave_out(OUTPUT, source)
        elif entry.name.startswith("."):
            found.leave_out(HIDDEN, source)
        elif entry.is_dir(follow_symlinks=False):
            folders.append(source)
        elif entry.is_symlink() and _mode(path / entry.name, stat.S_ISDIR):
            heapq.heappush(links, source)
        elif reason := _refusal(entry, path / entry.name):
            found.leave_out(reason, source)
        else:
            found.sources.append(source)


def _refusal(entry: os.DirEntry, path: Path) -> str:
    """Why a file is left out; "" if it may be a radiograph."""
    if not entry.is_file(follow_symlinks=False) and not _mode(path, stat.S_ISREG):
        return BROKEN if entry.is_symlink() and not _mode(path, bool) else NO_FILE
    if entry.name.upper() == "DICOMDIR":
        return INDEX
    # Exports often name files by the bare UID, whose last number looks like an ending.
    ending = path.suffix.lower()
    if ending in ENDINGS or ending[1:].isdecimal():
        return ""
    if ending in ARCHIVES:
        return ARCHIVE
    return "" if _may_be_image(path) else OTHER


def _may_be_image(path: Path) -> bool:
    """Whether a file begins like DICOM (with its mark at byte 128, or without preamble), PNG or JPEG."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return True  # the reader reports the error
    # Without preamble the first element is of group 2 or 8, and one of its first.
    bare = head[:2] in (b"\x02\0", b"\x08\0") and head[2:3] <= b"\x18" and head[3:4] == b"\0"
    return head[128:] == b"DICM" or head.startswith((PNG_SIGNATURE, b"\xff\xd8\xff")) or bare


def _mode(path: Path, test: Callable[[int], bool]) -> bool:
    """Whether what a path leads to is there and passes a test of its mode."""
    try:
        return test(os.stat(path).st_mode)
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int] | str:
    """Device and number of a folder, the same by whichever path it is reached; its path if it cannot be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _tell(found: Found) -> str:
    """One sentence about what was left out; "" if nothing was."""
    if not found.left_out:
        return ""
    kinds = [
        f"{count} {reason} ({printable(found.examples[reason])[-60:]}{', ...' if count > 1 else ''})"
        for reason, count in sorted(found.left_out.items())
    ]
    return f"Left out of {printable(str(found.folder))}: {'; '.join(kinds)}. "

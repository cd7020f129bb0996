"""What one command did, noted while it runs; `recording` makes run_report.json of it.

Whoever reads, writes or sets aside says so here, in one line; without a report under way that does nothing. The
report is the process's own, and its threads share it. It holds paths and counts, and nothing of what is in the files.

The report under way belongs to the whole process, as Python's log does. The places that add to it lie at the bottom of
every verb, in functions that also serve without a command: nearly every function would have to take the report to hand
it to them. No result depends on it.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Lists in the report end here; the counts beside them go on.
LISTED = 100


@dataclass
class _Files:
    """How many files, and the first of their paths."""

    count: int = 0
    paths: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, files: int) -> None:
        if path in self.paths:
            self.count += files - self.paths[path]
            self.paths[path] = files
            return
        self.count += files
        if len(self.paths) < LISTED:
            self.paths[path] = files


@dataclass
class Report:
    """What is known of the command under way; `code` and `reason` are set when it ends.

    `placed`: the place of `file` is by `place`, not by the user.
    """

    verb: str
    command: list[str]
    file: Path | None = None
    placed: bool = False
    process: int = 0
    code: int | None = None
    reason: str = ""
    where: str = ""
    read: _Files = field(default_factory=_Files)
    written: _Files = field(default_factory=_Files)
    reasons: Counter = field(default_factory=Counter)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)


_lock = threading.Lock()
_under_way: Report | None = None


@contextmanager
def under_way(report: Report) -> Iterator[None]:
    """Makes a report the one that is added to for the time of the block."""
    global _under_way
    before, _under_way = _under_way, report
    try:
        yield
    finally:
        _under_way = before


def place(output: Path | str) -> None:
    """Says where the report goes: into a folder, or beside a file as NAME.run_report.json. The first one counts."""
    report = _under_way
    if report and not report.file:
        path, report.placed = Path(os.path.abspath(output)), True
        beside = path.suffix in (".json", ".csv", ".png") and not path.is_dir()
        report.file = path.with_name(f"{path.stem}.run_report.json") if beside else path / "run_report.json"


def process(index: int) -> None:
    """Says that this is one of several processes with one output folder; the others' reports carry their number."""
    if _under_way:
        _under_way.process = index


def read(path: Path | str, files: int = 1) -> None:
    """Notes that a file was read, or so many below a folder."""
    _note("read", path, files)


def wrote(path: Path | str, files: int = 1) -> None:
    """Notes that a file was written, or so many below a folder."""
    _note("written", path, files)


def moved(old: Path | str, new: Path | str) -> None:
    """Notes that a folder was renamed after files had been written to it."""
    if _under_way:
        with _lock:
            paths = _under_way.written.paths
            _under_way.written.paths = {
                str(new / Path(path).relative_to(old)) if Path(path).is_relative_to(old) else path: files
                for path, files in paths.items()
            }


def set_aside(path: Path | str, reason: str) -> None:
    """Notes an input that was not used, and why."""
    if _under_way:
        with _lock:
            _under_way.reasons[reason] += 1
            if len(_under_way.set_aside) < LISTED:
                _under_way.set_aside.append({"path": str(path), "reason": reason})


def failed(error: BaseException) -> None:
    """Notes why a command ends that tells the user itself."""
    if _under_way:
        _under_way.reason = f"{type(error).__name__}: {error}".removesuffix(": ")


def skipped(what: str, count: int = 1) -> None:
    """Notes work that was not needed, for example because an earlier start has done it."""
    if _under_way and count:
        with _lock:
            _under_way.skipped[what] += count


def _note(kind: str, path: Path | str, files: int) -> None:
    if _under_way:
        with _lock:
            getattr(_under_way, kind).add(str(path), files)

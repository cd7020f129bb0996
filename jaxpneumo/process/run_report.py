"""run_report.json: what one command did, however it ended.

Whoever reads, writes or sets aside says so here, in one line; without a report under way that does nothing. The
report is the process's own, and its threads share it. It holds paths and counts, and nothing of what is in the files.
"""

import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpneumo.process.errors import BAD_INPUT, DONE, PARTIAL

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
def recording(verb: str, command: list[str], file: Path | None = None) -> Iterator[Report]:
    """A report for the time of the block, written at its end wherever `place` or `file` says; see the module.

    Args:
      verb: name of the command.
      command: the whole command line.
      file: where the report goes; None: where `place` says, or nowhere.
    """
    global _under_way
    before, report = _under_way, Report(verb, command, Path(os.path.abspath(file)) if file else None)
    started, start = datetime.now(UTC), time.monotonic()
    _under_way = report
    try:
        yield report
    finally:
        _under_way = before
        _write(report, started, time.monotonic() - start)


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


def _write(report: Report, started: datetime, seconds: float) -> None:
    """Writes a report that has a place, and changes nothing else: whatever fails on the way is told as a warning."""
    try:
        _write_to_its_place(report, started, seconds)
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        print(f"jaxpneumo: the run report {report.file} could not be written: {reason}.", file=sys.stderr)


def _write_to_its_place(report: Report, started: datetime, seconds: float) -> None:
    """A folder that was never made, or not filled, is not made or filled for the report: it goes beside it."""
    # Here: files.py notes what it writes, and so imports this module.
    from jaxpneumo.process.files import write_json
    from jaxpneumo.process.software import software

    path = report.file
    if path is None:
        return
    if report.process:
        path = path.with_name(f"{path.stem}_{report.process}{path.suffix}")
    beside = path.parent.parent / f"{path.parent.name}.{path.name}"
    unused = report.placed and report.code not in (None, DONE, PARTIAL) and not any(path.parent.glob("*"))
    if unused or not path.parent.is_dir():
        if report.code == BAD_INPUT or not path.parent.parent.is_dir():
            return
        path = beside
    else:
        beside.unlink(missing_ok=True)
    scale = 1 if sys.platform == "darwin" else 1024
    used = {who: resource.getrusage(getattr(resource, f"RUSAGE_{who.upper()}")) for who in ("self", "children")}
    content: dict[str, Any] = {
        "verb": report.verb,
        "command": report.command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "exit": {"code": report.code, "reason": report.reason, "where": report.where},
        "read": vars(report.read),
        "written": vars(report.written),
        "set_aside": {
            "count": report.reasons.total(),
            "reasons": dict(report.reasons.most_common(LISTED)),
            "files": report.set_aside,
        },
        "skipped": dict(report.skipped),
        "peak_memory_bytes": {who: usage.ru_maxrss * scale for who, usage in used.items()},
        "processor_seconds": {who: round(usage.ru_utime + usage.ru_stime, 3) for who, usage in used.items()},
        "software": software(),
    }
    write_json(path, content)

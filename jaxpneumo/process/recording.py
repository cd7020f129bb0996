"""run_report.json: what one command did, however it ended; `run_report` has what is noted while it runs."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import BAD_INPUT, DONE, PARTIAL
from jaxpneumo.process.run_report import LISTED, Report, under_way


@contextmanager
def recording(verb: str, command: list[str], file: Path | None = None) -> Iterator[Report]:
    """A report for the time of the block, written at its end to `file`, or to where `run_report.place` says.

    Args:
      verb: name of the command.
      command: the whole command line.
      file: where the report goes; None: where `run_report.place` says, or nowhere.
    """
    report = Report(verb, command, Path(os.path.abspath(file)) if file else None)
    started, start = datetime.now(UTC), time.monotonic()
    try:
        with under_way(report):
            yield report
    finally:
        _write(report, started, time.monotonic() - start)


def _write(report: Report, started: datetime, seconds: float) -> None:
    """Writes a report that has a place, and changes nothing else: whatever fails on the way is told as a warning."""
    try:
        _write_to_its_place(report, started, seconds)
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        print(f"jaxpneumo: the run report {report.file} could not be written: {reason}.", file=sys.stderr)


def _write_to_its_place(report: Report, started: datetime, seconds: float) -> None:
    """A folder that was never made, or not filled, is not made or filled for the report: it goes beside it.

    The report of an earlier command stays where this one was refused before it wrote anything: it still says how what
    is there was made. The user's own place for the report is this command's in any case.
    """
    # Here: files.py notes what it writes, and so imports this module.

    from jaxpneumo.process.software import software  # here: --help does without what it imports

    path = report.file
    if path is None:
        return
    if report.process:
        path = path.with_name(f"{path.stem}_{report.process}{path.suffix}")
    if path.exists() and report.placed and report.code == BAD_INPUT and not report.written.count:
        return
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

"""What all verbs share: their common options, logging, the run report, exit codes."""

import argparse
import io
import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from jaxpneumo import __version__
from jaxpneumo.process import places, progress, run_report
from jaxpneumo.process.errors import exit_code, tell
from jaxpneumo.process.recording import recording
from jaxpneumo.process.stop import end_on_sigterm

logger = logging.getLogger("jaxpneumo")

CLOSED = 141  # 128 and SIGPIPE: what a shell says of a program that nobody reads any more

OPTIONS = """\
options of every verb:
  --quiet             no progress bars, and only warnings in the log
  --verbose           everything in the log, with the time
  --run-report FILE   where run_report.json goes (default: the output folder)
  --log-json FILE     the log also as JSON lines, appended to FILE
  --version           the version alone"""


def run(name: str, verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a verb with the common options taken out of its arguments, and reports how it ended.

    Args:
      name: of the verb.
      verb: its `main`.
      arguments: of the command line, behind the verb.

    Returns:
      The exit code (see errors.py). What a verb raises beyond its known failures is reported and raised.
    """
    return until_closed(lambda: _run(name, verb, arguments))


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a verb's arguments ask for its help or the version, so that nothing will be computed."""
    return not {"-h", "--help", "--version"}.isdisjoint(arguments)


def until_closed(program: Callable[[], int]) -> int:
    """Runs a program and returns its exit code; one whose reader has gone, as with `| head`, ends without a word."""
    try:
        try:
            code = program()
        finally:
            # Here, and not when Python ends, where nobody could catch it.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        return code
    except OSError as error:
        pipe = isinstance(error, BrokenPipeError)
        lost = [stream for stream in (sys.stdout, sys.stderr) if stream and _has_no_reader(stream)]
        if pipe and not lost:
            raise  # another pipe, such as one to a worker process
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in lost or filter(None, [sys.stdout]):
            os.dup2(nowhere, stream.fileno())
        return CLOSED if pipe else tell(error)


def _has_no_reader(stream: IO[str]) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(name: str, verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    options, rest = _common(name).parse_known_args(arguments)
    start_logging(options.quiet, options.verbose, options.log_json)
    progress.silent = options.quiet
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    # A verb that is asked to end ends as after an exception: what it holds is put away, and the report is written.
    end_on_sigterm()

    def noted(arguments: Sequence[str]) -> int:
        try:
            return verb(arguments)
        except SystemExit:
            raise
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            run_report.failed(error)
            report.where = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
            raise

    with recording(name, sys.argv, options.run_report) as report:
        try:
            report.code = exit_code(noted, rest)
        except SystemExit as end:
            report.code = end.code if isinstance(end.code, int) else int(bool(end.code))
            raise
        except BaseException:
            report.code = 1
            raise
        return report.code


def start_logging(quiet: bool = False, verbose: bool = False, log_json: Path | None = None) -> None:
    """Sends this package's log to standard error, and other libraries' warnings with it."""
    timed = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(format=timed if verbose else "%(message)s", level=logging.WARNING, force=True)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        # Orbax logs a page of tracebacks before it raises the error that is told in words.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    if log_json:
        log_json.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_json, encoding="utf-8")
        handler.setFormatter(_JsonLines())
        logging.getLogger().addHandler(handler)


class _JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line | ({"exception": self.formatException(record.exc_info)} if record.exc_info else {}))


def _common(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jaxpneumo {name}", add_help=False, allow_abbrev=False)
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true")
    loudness.add_argument("--verbose", action="store_true")
    parser.add_argument("--run-report", type=places.path, metavar="FILE")
    parser.add_argument("--log-json", type=places.file_to_write, metavar="FILE")
    parser.add_argument("--version", action="version", version=f"jaxpneumo {__version__}")
    return parser

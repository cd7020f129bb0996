"""What all verbs share: their common options, logging, the run report, exit codes."""

import argparse
import io
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from jaxpneumo import progress, run_report
from jaxpneumo.errors import exit_code
from jaxpneumo.train.stop import end_on_sigterm

logger = logging.getLogger("jaxpneumo")

OPTIONS = """\
options of every verb:
  --quiet             no progress bars, and only warnings in the log
  --verbose           everything in the log, with the time
  --run-report FILE   where run_report.json goes (default: the output folder)
  --log-json FILE     the log also as JSON lines, appended to FILE"""


def run(name: str, verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a verb with the common options taken out of its arguments, and reports how it ended.

    Args:
      name: of the verb.
      verb: its `main`.
      arguments: of the command line, behind the verb.

    Returns:
      The exit code (see errors.py). What a verb raises beyond its known failures is reported and raised.
    """
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

    with run_report.recording(name, sys.argv, options.run_report) as report:
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
    parser.add_argument("--run-report", type=Path, metavar="FILE")
    parser.add_argument("--log-json", type=Path, metavar="FILE")
    return parser

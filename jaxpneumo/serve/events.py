"""What the listener says of its work: one JSON line an event, and the counts of events for the metrics.

A line holds UIDs, AE titles, addresses and reasons, and nothing else about a patient.
"""

import logging
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpneumo.process import jsonl
from jaxpneumo.process.files import printable

logger = logging.getLogger(__name__)

# Events that a person has to know of. They are warnings in the program's log too.
TOLD = {"rejected", "refused", "conflict", "busy", "set aside", "not sent", "given up", "model lost", "failed"}


class Events:
    """Notes events, from any thread.

    Args:
      folder: holds one file a day, YYYY-MM-DD.jsonl (UTC). People may remove old ones.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, event: str, destination: str = "", **facts: Any) -> None:
        """Writes an event with its time, and counts it by destination."""
        now = datetime.now(UTC)
        named = {"destination": destination} if destination else {}
        entry = {"event": event, **named, **{name: _text(value) for name, value in facts.items()}}
        told = ", ".join(f"{name} {value}" for name, value in entry.items() if name != "event")
        logger.log(logging.WARNING if event in TOLD else logging.INFO, "%s", f"{event}: {told}" if told else event)
        with self._lock:
            self._counts[event, destination] += 1
            try:
                with open(self._folder / f"{now:%Y-%m-%d}.jsonl", "ab") as file:
                    file.write(jsonl.line({"time": now.isoformat(timespec="milliseconds"), **entry}))
            except OSError as error:  # a full disk must not keep anyone from answering
                logger.warning("the log cannot be written: %s", error.strerror)

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each (event, destination) was noted since the start."""
        with self._lock:
            return dict(self._counts)


def _text(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value

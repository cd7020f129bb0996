"""Sends results on: what a destination does not take is tried again later, and in the end becomes a dead letter."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxpneumo.serve.events import Events
from jaxpneumo.serve.partners import Destination
from jaxpneumo.serve.retry import Schedule
from jaxpneumo.serve.spool import Spool

PAUSE = 0.2  # seconds between two looks at a folder where nothing waits
BATCH = 64  # results in one association, so that a new one of another image does not wait for ever

# Sends files to a destination and gives each with "" or why it was not taken. Raises OSError where the destination is
# away, and UnicodeError where its file of credentials is not text.
Send = Callable[[Sequence[Path]], Iterable[tuple[Path, str]]]


def deliver_waiting(
    spool: Spool, destination: Destination, send: Send, events: Events, ending: threading.Event, give_up: float
) -> None:
    """Sends the results that wait for a destination until `ending` is set, and then once more what may be tried.

    Args:
      spool: the folders.
      destination: where they go.
      send: to this destination.
      events: are told what happens.
      ending: is set to end it.
      give_up: seconds after its first failure, or its destination's, when a result that fails becomes a dead letter.
        They count from the start of this process, so that a listener that was off for days tries everything again.
    """
    schedule = Schedule()
    while True:
        last, began = ending.is_set(), time.monotonic()
        waiting = spool.waiting(destination.name)
        schedule.keep({*waiting, destination.name})
        now = time.monotonic()
        due = [path for path in waiting if schedule.may_try(path, now)][:BATCH]
        if due and schedule.may_try(destination.name, now):
            _deliver(spool, destination, due, send, events, schedule, give_up)
        if not schedule.may_try(destination.name, now):
            for path in waiting:
                schedule.held_up(path, now)
        if last:
            return
        if not due or not schedule.may_try(destination.name, now):
            # A look at thousands of results that wait for a destination takes a while; most of the time is for others.
            ending.wait(max(PAUSE, 5 * (time.monotonic() - began)))


def _deliver(
    spool: Spool,
    destination: Destination,
    due: Sequence[Path],
    send: Send,
    events: Events,
    schedule: Schedule,
    give_up: float,
) -> None:
    """One association, or one request for each file."""

    def failed(path: Path, reason: str) -> None:
        result = {"uid": path.parent.parent.name, "result": path.stem}
        try:
            if schedule.seconds(path, time.monotonic()) > give_up:
                spool.give_up(path, reason)
                events.note("given up", destination.name, **result, reason=reason)
        except OSError as error:  # a full disk, or a person has moved it; the next failure comes here again
            events.note("failed", destination.name, **result, reason=str(error.strerror))

    left = list(due)
    try:
        for path, reason in send(due):
            left.remove(path)
            if reason:  # which may be the file's own, so that it says nothing of the destination
                seconds = schedule.failed(path, time.monotonic())
                note = {"uid": path.parent.parent.name, "result": path.stem, "reason": reason}
                events.note("not sent", destination.name, **note, next_try_seconds=seconds)
                failed(path, reason)
            else:
                schedule.succeeded(destination.name)
                events.note("sent", destination.name, uid=path.parent.parent.name, result=path.stem)
                spool.delivered(path)
    except (OSError, UnicodeError) as error:
        seconds = schedule.failed(destination.name, time.monotonic())
        # What a UnicodeError quotes can be a part of a password.
        wrong = isinstance(error, UnicodeError)
        reason = "its credentials are not UTF-8 text" if wrong else " ".join(str(error).split())[:200]
        events.note("not sent", destination.name, results=len(left), reason=reason, next_try_seconds=seconds)
        for path in left:
            failed(path, reason)

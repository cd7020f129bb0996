"""Gives waiting images to the process of the model, one after another, and its results to the destinations."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from jaxpneumo.process.errors import InputError
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.model_process import LostError, ModelProcess, Verdict
from jaxpneumo.serve.retry import Schedule
from jaxpneumo.serve.spool import IMAGE, INCOMING, RESULTS, Spool

PAUSE = 0.2  # seconds between two looks at a folder where nothing waits
TRIES = 2  # with an image with which the process of the model crashes or meets an unforeseen error


def predict_waiting(
    spool: Spool, model: ModelProcess, wanted: Mapping[str, Sequence[str]], events: Events, ending: threading.Event
) -> None:
    """Predicts what waits in incoming, the oldest first, until `ending` is set; an image in work is finished.

    Args:
      spool: the folders.
      model: a process that was started.
      wanted: the names of results by destination.
      events: are told what happens.
      ending: is set to end it.
    """
    schedule = Schedule()
    while not ending.is_set():
        waiting = spool.listed(INCOMING)
        for uid in waiting:
            if ending.is_set():
                return
            try:
                _predict(spool, model, wanted, events, uid)
                schedule.succeeded("model")
            except (LostError, InputError, OSError) as error:
                # The model cannot be started, or the disk is full: the image waits again.
                spool.take_back(uid)
                seconds = schedule.failed("model", 0.0)
                events.note("failed", uid=uid, reason=str(error), next_try_seconds=seconds)
                ending.wait(seconds)
        if not waiting:
            ending.wait(PAUSE)


def _predict(spool: Spool, model: ModelProcess, wanted: Mapping[str, Sequence[str]], events: Events, uid: str) -> None:
    folder = spool.begin(uid)
    if folder is None:
        return
    if not model.ready:
        model.start()
        events.note("model started")
    started = datetime.now(UTC)
    verdict = _look(model, folder, events, uid)
    if verdict.reason:
        spool.set_aside(uid, verdict.reason)
        events.note("set aside", uid=uid, reason=verdict.reason)
        return
    now = datetime.now(UTC)
    spool.publish(uid, dict(wanted), {"predicted": now.isoformat(timespec="milliseconds"), **verdict.facts})
    events.note("predicted", uid=uid, seconds=round((now - started).total_seconds(), 3), **verdict.facts)


def _look(model: ModelProcess, folder: Path, events: Events, uid: str) -> Verdict:
    tries = 0
    while True:
        tries += 1
        try:
            return model.look(folder / IMAGE, folder / RESULTS)
        except LostError as error:
            events.note("model lost", uid=uid, reason=f"it {error}")
            model.start()
            events.note("model started")
            if tries == TRIES or not error.crashed:
                return Verdict(f"the process of the model {error} with it")

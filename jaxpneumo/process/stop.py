"""SIGTERM, by which Slurm and Kubernetes ask a program to end: training saves first, everything else ends at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jaxpneumo.process.errors import Stopped


def end_on_sigterm() -> None:
    """From now on SIGTERM raises Stopped in the main thread, but for the time of `sigterm_deferred`."""
    signal.signal(signal.SIGTERM, _raise_stopped)


@contextmanager
def sigterm_deferred() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM is only noted: the function given says whether it has come.

    A second one changes nothing. Outside of the main thread Python handles no signals, and the answer is False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: requested.set())
    try:
        yield requested.is_set
    finally:
        # None is a handler that Python did not set and cannot set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped

"""The process of the model: it is given one image after another, and may crash or hang without harm to the rest.

What it does with an image is a function that `make` returns in that process, so that the process of the network never
loads JAX.
"""

import fcntl
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.workers import end_with_parent

START_SECONDS = 600.0
HELD = "model.lock"


@dataclass(frozen=True)
class Verdict:
    """What became of an image.

    Attributes:
      reason: why it was not predicted, in words; "" if it was, and its results are written.
      facts: for its record, such as whether anything was outlined.
    """

    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


# Of an image's file, and of the folder to make, with NAME.dcm for each result in it.
Look = Callable[[Path, Path], Verdict]


class LostError(RuntimeError):
    """The process of the model ended, took too long or met an unforeseen error; the message says which.

    Attributes:
      crashed: it did not take too long. The system may have ended it for another's memory, or the device was lost, so a
        second try in a new process makes sense.
    """

    def __init__(self, why: str, crashed: bool = False):
        super().__init__(why)
        self.crashed = crashed


class ModelProcess:
    """The process; it starts with `start`, and again after it was lost.

    Args:
      make: returns the function `Look`; importable, as for any spawned process. InputError is told to the user.
      arguments: of `make`.
      spool: a folder whose lock the process holds, so that never two of them work in it.
      seconds: that one image may take.
    """

    def __init__(self, make: Callable[..., Look], arguments: tuple, spool: Path, seconds: float):
        self._make, self._arguments, self._spool, self._seconds = make, arguments, spool, seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._loaded = False

    @property
    def ready(self) -> bool:
        """Whether it runs and has its model."""
        process = self._process
        return self._loaded and process is not None and process.is_alive()

    @property
    def pid(self) -> int:
        """The process's number; 0 without a process."""
        process = self._process
        return (process.pid or 0) if process is not None else 0

    def start(self) -> None:
        """Starts the process and waits until it has its model.

        Raises:
          InputError: the model cannot be made.
          LostError: the process ended before it was ready.
        """
        self.stop()
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._make, self._arguments, self._spool / HELD)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        answer = self._answer(START_SECONDS)
        if isinstance(answer, InputError):
            self.stop()
            raise answer
        self._loaded = True

    def look(self, image: Path, into: Path) -> Verdict:
        """Lets the process look at an image; its results are in the folder `into` when this returns.

        Raises:
          LostError: the process ended, took too long, or met an unforeseen error, after which it may fail with all that
            comes next. It has to be started again.
          OSError: a result could not be written.
        """
        if self._pipe is None:
            raise LostError("it was not started")
        with suppress(OSError):  # it has just ended, which its answer will tell
            self._pipe.send((image, into))
        answer = self._answer(self._seconds)
        if isinstance(answer, LostError):
            self.stop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """Ends the process at once; nothing that it was given is finished by it."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None
        self._loaded = False

    def _answer(self, seconds: float) -> Any:
        assert self._pipe is not None
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            lost = LostError(f"took more than {seconds:g} seconds")
        except (EOFError, OSError):
            lost = LostError("crashed", crashed=True)
        self.stop()
        raise lost


def _work(pipe: Connection, make: Callable[..., Look], arguments: tuple, lock: Path) -> None:
    """The life of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a cluster send them to both processes
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # until an older one, whose parent was killed, has ended too
        try:
            look = make(*arguments)
        except InputError as error:
            pipe.send(error)
            return
        pipe.send(None)
        with suppress(EOFError, OSError):
            while True:
                pipe.send(_look(look, *pipe.recv()))


def _look(look: Look, image: Path, into: Path) -> Verdict | OSError | LostError:
    try:
        return look(image, into)
    except OSError as error:
        return error
    except InputError as error:
        return Verdict(str(error))
    except Exception as error:  # its text may hold values of the header
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
        return LostError(f"met an unforeseen error ({place})", crashed=True)

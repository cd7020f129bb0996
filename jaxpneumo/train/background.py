"""One thread beside the training that writes what a run leaves behind, and when a stage's states are saved.

The thread does its jobs one after the other in the order in which they were given: an epoch's line is in the log before
the checkpoint that marks the epoch as done, also after a kill.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from jaxpneumo.run import checkpoint
from jaxpneumo.run.state import TrainState

# Jobs that may be unfinished, the one that is being done among them; some hold a copy of the state on the device.
MOST_JOBS = 4


class Background:
    """Jobs that are done beside the training. After one that failed, none is done."""

    def __init__(self, threads: bool = True):
        """`threads` False does each job at once, where it is given."""
        self._executor = ThreadPoolExecutor(1, "writer") if threads else None
        self._unfinished: deque[Future[None]] = deque()
        self._failed = False

    def do(self, job: Callable[..., object], *arguments: Any) -> None:
        """Gives a job to the thread, and waits while `MOST_JOBS` are unfinished. Raises what an earlier job raised."""
        if self._executor is None:
            job(*arguments)
            return
        self._wait_for(MOST_JOBS - 1)
        self._unfinished.append(self._executor.submit(self._do, job, *arguments))

    def wait(self) -> None:
        """Until all jobs are done. Raises what one of them raised."""
        self._wait_for(0)

    def close(self) -> None:
        """Does the jobs given so far and ends the thread; raises nothing."""
        if self._executor is not None:
            self._executor.shutdown()

    def _wait_for(self, count: int) -> None:
        """Until at most `count` jobs are unfinished; those that are finished are asked for their errors."""
        while self._unfinished and (len(self._unfinished) > count or self._unfinished[0].done()):
            self._unfinished.popleft().result()

    def _do(self, job: Callable[..., object], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            job(*arguments)
        except BaseException:
            self._failed = True
            raise


@contextmanager
def background() -> Iterator[Background]:
    """A `Background` whose jobs are done at the end of the block.

    What ended the block is told, not that a job failed as well. With several processes each job is done at once: Orbax
    meets the other processes there, and all must come in one order.
    """
    work = Background(threads=jax.process_count() == 1)
    try:
        yield work
        work.wait()
    finally:
        work.close()


class Keeper:
    """Saves a stage's states: at most every `seconds`, and when it is told to.

    Where the best epoch's state is the stage's result, it is kept as a copy on the device and written before the next
    checkpoint. So a checkpoint never misses the best epoch before it, and many better and better epochs cost one.
    With several processes, whose clocks differ, every epoch is saved.
    """

    def __init__(self, manager: Any, work: Background, seconds: float, by_best: bool):
        """Of a manager of `open_checkpoints`. With `by_best` the best epoch is the result."""
        self._manager, self._work, self._seconds = manager, work, seconds
        self.by_best = by_best
        self._saved_at, self._saved_step, self._best = time.monotonic(), -1, -1.0
        self._unsaved: tuple[int, TrainState, dict[str, Any]] | None = None

    def due(self) -> bool:
        """Whether an epoch that ends now is to be saved because of the time."""
        return jax.process_count() > 1 or time.monotonic() - self._saved_at >= self._seconds

    def epoch_ended(self, step: int, state: TrainState | None, progress: dict[str, Any], due: bool) -> None:
        """Saves the state at an epoch's end if it is due, and keeps it if it may be the result.

        Args:
          step, progress: of `checkpoint.save`.
          state: a copy that is never donated; None only if it is not due and the best epoch is not the result.
          due: whether to save it.
        """
        if self.by_best and progress["validation_iou"] >= self._best:
            assert state is not None
            self._best, self._unsaved = progress["validation_iou"], (step, state, progress)
        if due:
            assert state is not None
            self.save(step, state, progress)

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves a state that is never donated, after the best epoch's, and returns at once."""
        best, self._unsaved = self._unsaved, None
        if best is not None and best[0] < step:
            self._work.do(checkpoint.save, self._manager, *best)
        if step != self._saved_step:
            self._work.do(checkpoint.save, self._manager, step, state, progress)
        self._saved_at, self._saved_step = time.monotonic(), step

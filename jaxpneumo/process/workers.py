"""Worker processes that survive their tasks: one that crashes or hangs costs that task and nothing else.

Standard pools give up when a process dies, and wait for ever for one that hangs. A damaged file can do either
to a decoder. For work that does neither, `pool` is a standard one.
"""

import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from jaxpneumo.process.machine import peak_memory
from jaxpneumo.process.runtime import one_thread_each

AHEAD = 16  # tasks that wait in a process's pipe, so that it never waits for this one
PAUSE = 0.01  # seconds in which results gather: taking each at once would interrupt a process each time
START_SECONDS = 300
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc, malloc.h


@dataclass(frozen=True)
class Lost:
    """What comes instead of a result when a task's process had to be given up.

    Attributes:
      why: "crashed" or "took too long".
    """

    why: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    tasks: deque = field(default_factory=deque)
    ready: bool = False
    since: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, for the next task.

    The C library otherwise returns every array of some size to the system, and fetching it anew a page at a time
    can cost as much as decoding an image. Does nothing where the library is not glibc.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 64 << 20)


def pool(workers: int) -> ProcessPoolExecutor:
    """A standard pool of spawned processes, each started when it is first needed. They end with this process."""
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even if that was killed."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if (parent := parent_process()) is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def run(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int,
    start: Callable[..., None],
    arguments: tuple,
    seconds: float,
    peaks: list[int] | None = None,
    window: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Runs a function over tasks in spawned processes.

    A task whose process dies is tried once more, since the system may have killed it for another's memory; the
    second time it is lost. A task that takes longer than it may is lost at once.

    Args:
      function: of one task; importable, as for any spawned process.
      tasks: picklable; taken as they are needed.
      workers: number of processes.
      start, arguments: called once in every process before its first task.
      seconds: that one task may take.
      peaks: is given `peak_memory` of every process that worked to the end.
      window: no task is begun that comes `window` tasks or more after one whose result has not been taken. None is
        no limit.

    Yields:
      (task, result or Lost) as they come, in no order.

    Raises:
      whatever `function` raises; RuntimeError when a process cannot even start.
    """
    context = get_context("spawn")
    if isinstance(tasks, Sized):
        workers = min(workers, len(tasks))
    coming, again, tried = enumerate(tasks), deque(), set()
    begun, more = 0, workers > 0
    most_queued = AHEAD if window is None else min(AHEAD, -(-window // max(workers, 1)))

    def launch() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, function, start), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def following() -> tuple[int, Any] | None:
        """The next task that may begin, with its number."""
        nonlocal begun, more
        if again:
            return again.popleft()
        oldest = min((number for worker in team for number, _ in worker.tasks), default=begun)
        if not more or (window is not None and begun - oldest >= window):
            return None
        task = next(coming, None)
        begun, more = begun + 1, task is not None
        return task

    def feed(worker: _Worker) -> None:
        while len(worker.tasks) < most_queued and (task := following()) is not None:
            if not worker.tasks:
                worker.since = time.monotonic()
            worker.tasks.append(task)
            with suppress(OSError):  # it has just died, which the pipe will tell
                worker.pipe.send(task[1])

    def give_up(worker: _Worker, why: str) -> Iterator[tuple[Any, Any]]:
        """Replaces a dead or hanging process; its unfinished tasks wait again."""
        worker.stop()
        team.remove(worker)
        if not worker.ready:
            raise RuntimeError(f"a worker process {why} before its first task. If memory ran out, use fewer workers")
        if worker.tasks:
            number, task = worker.tasks.popleft()
            again.extendleft(reversed(worker.tasks))
            if why == "crashed" and number not in tried:
                tried.add(number)
                again.appendleft((number, task))
            else:
                yield task, Lost(why)
        if again or more:
            team.append(launch())
            introduce(team[-1])

    def introduce(worker: _Worker) -> None:
        with suppress(OSError):  # it has just died, which the pipe will tell
            worker.pipe.send(arguments)

    team = [launch() for _ in range(workers)]
    try:
        # Only now, so that all of them start at once: large arguments wait until they are taken.
        for worker in team:
            introduce(worker)
        while again or more or any(worker.tasks for worker in team):
            pipes = [worker.pipe for worker in team]
            ready = wait(pipes, timeout=0)
            if not ready:
                time.sleep(PAUSE)
                ready = wait(pipes, timeout=min(1.0, seconds))
            for pipe in ready:
                worker = next(worker for worker in team if worker.pipe is pipe)
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    yield from give_up(worker, "crashed")
                    continue
                worker.since = time.monotonic()
                if kind == "error":
                    raise value
                if kind == "ready":
                    worker.ready = True
                else:
                    yield worker.tasks[0][1], value
                    worker.tasks.popleft()
                feed(worker)
            for worker in list(team):
                limit = seconds if worker.ready else START_SECONDS
                if worker.ready and not worker.tasks:
                    feed(worker)  # the window may have moved on
                # What is in the pipe has not taken too long: this process was busy elsewhere.
                elif time.monotonic() - worker.since > limit and not worker.pipe.poll():
                    yield from give_up(worker, "took too long")
        for worker in team:
            if worker.ready:
                worker.pipe.send(None)
        for worker in team:
            if worker.ready and worker.pipe.poll(10) and peaks is not None:
                peaks.append(worker.pipe.recv()[1])
    finally:
        for worker in team:
            worker.stop()


def _begin() -> None:
    """The start of a process of a pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    one_thread_each()


def _work(pipe: Connection, function: Callable, start: Callable) -> None:
    """The life of one process: ends when it is told to, or when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()  # while it works it does not look at the pipe
    try:
        try:
            start(*pipe.recv())
            pipe.send(("ready", None))
            while (task := pipe.recv()) is not None:
                pipe.send(("result", function(task)))
            pipe.send(("peak", peak_memory()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # whatever it is, the process that started this one raises it
            pipe.send(("error", error))
    except OSError:
        return

"""Processes that crash or hang cost their task and nothing else."""

import os
import platform
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxpneumo.process import workers

_offset = 0


def start(offset: int) -> None:
    global _offset
    _offset = offset


def refuse(_: int) -> None:
    os._exit(3)


def work(task: tuple) -> int:
    kind, number, *rest = task
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "crash once" and not rest[0].exists():
        rest[0].touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    if kind == "error":
        raise OSError(28, "No space left on device")
    return number + _offset


def results(tasks, team=2, seconds=20.0, peaks=None, starter=start):
    return dict(workers.run(work, tasks, team, starter, (100,), seconds, peaks))


def test_every_task_is_answered_once():
    tasks, peaks = [("fine", number) for number in range(50)], []
    assert results(tasks, 3, peaks=peaks) == {task: task[1] + 100 for task in tasks}
    assert 1 <= len(peaks) <= 3  # one that has just started may have had nothing to do
    assert all(1e6 < peak < 1e9 for peak in peaks)


def test_a_crash_and_a_hang_cost_one_task_each(tmp_path):
    tasks = [("fine", 0), ("crash", 1), ("fine", 2), ("hang", 3), ("crash once", 4, tmp_path / "mark")]
    tasks += [("fine", number) for number in range(5, 12)]
    begin = time.monotonic()
    found = results(tasks, seconds=1.0)
    assert time.monotonic() - begin < 20
    assert found[tasks[1]] == workers.Lost("crashed")
    assert found[tasks[3]] == workers.Lost("took too long")
    assert {task[1]: value for task, value in found.items() if not isinstance(value, workers.Lost)} == {
        number: number + 100 for number in (0, 2, *range(4, 12))
    }


def test_no_task_begins_beyond_the_window(tmp_path):
    """One slow task holds back all that come a window later, and nothing else."""
    tasks = [("crash once", 0, tmp_path / "mark"), *(("fine", number) for number in range(1, 40))]
    taken, seen = [], []

    def coming():
        for task in tasks:
            taken.append(task[1])
            yield task

    for task, _ in workers.run(work, coming(), 3, start, (100,), 20.0, window=6):
        oldest = next(number for number in range(40) if number not in seen)
        assert max(taken) < oldest + 6
        seen.append(task[1])
    assert sorted(seen) == list(range(40))


def test_no_tasks_need_no_processes():
    assert results([]) == {}
    assert dict(workers.run(work, iter([]), 2, start, (100,), 20.0)) == {}


def test_waiting_for_the_one_who_takes_the_results_is_not_taking_too_long():
    found = []
    for _, value in workers.run(work, [("fine", number) for number in range(8)], 2, start, (100,), 0.3):
        found.append(value)
        time.sleep(0.5)
    assert sorted(found) == list(range(100, 108))


def test_an_error_of_the_function_is_raised_here():
    with pytest.raises(OSError, match="No space left"):
        results([("fine", 1), ("error", 2)])


def test_processes_that_cannot_start_are_told():
    with pytest.raises(RuntimeError, match="crashed before its first task"):
        results([("fine", 1)], 1, starter=refuse)


def keep(_: int) -> None:
    workers.keep_memory()


def count_page_faults(_: int) -> int:
    """How often the system had to give memory for five arrays of 2 MB, ten times after the first."""

    def work() -> None:
        [np.ones(2_000_000, np.uint8) for _ in range(5)]

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_is_kept_for_the_next_task():
    assert dict(workers.run(count_page_faults, [0], 1, keep, (0,), 20.0))[0] < 1000
    assert dict(workers.run(count_page_faults, [0], 1, start, (0,), 20.0))[0] > 5000


POOL = """
import os
from jaxpneumo.process import workers
if __name__ == "__main__":
    print(workers.pool(1).submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), 9)
"""
HANGING = """
import os, time
from jaxpneumo.process import workers
def start():
    pass
def hang(parent):
    print(os.getpid(), flush=True)
    os.kill(parent, 9)
    time.sleep(60)
if __name__ == "__main__":
    list(workers.run(hang, [os.getpid()], 1, start, (), 60))
"""


@pytest.mark.parametrize("text", [POOL, HANGING])
def test_processes_end_with_the_one_that_started_them(tmp_path, text):
    """Also if that is killed, as by the system when memory runs out: nothing is left behind, not even what hangs."""
    script = tmp_path / "script.py"
    script.write_text(text)
    with open(tmp_path / "told", "w") as told:  # no pipe, which a process that lives on would keep open
        first = subprocess.run([sys.executable, script], stdout=told, check=False)
    assert first.returncode == -signal.SIGKILL
    process = int((tmp_path / "told").read_text())
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    raise AssertionError("the process lives on")

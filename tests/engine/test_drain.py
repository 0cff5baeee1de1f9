"""Tasks that fail, hang, or run out of memory are tried again, a bounded number of times."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, SLACK, share_each
from streamimg3.engine.receipts import Ledger
from streamimg3.errors import BudgetError, TaskError
from streamimg3.store.backend import Backend
from tests.engine.test_runner import Listener, tasks


# ---------------------------------------------------------------- work (must be importable by other processes)
def fail_first(task: Task, folder: Path, times: int = 1) -> tuple[str, ...]:
    """The second task fails the first times, each time in another way."""
    if task.key == "t01":
        mark = folder / "tries"
        with mark.open("a") as f:
            f.write("x")
        count = mark.stat().st_size
        if count <= times:
            raise OSError(f"passing trouble, number {count}")
    return (task.key,)


def short_of_memory(task: Task) -> tuple[int, ...]:
    """Works only with a quarter of what it is granted at first."""
    if task.limit > task.nbytes // 4:
        raise MemoryError
    return (task.limit,)


def hang_once(task: Task, folder: Path) -> tuple[int, ...]:
    """The second task hangs the first time."""
    mark = folder / "hung"
    if task.key == "t01" and not mark.exists():
        mark.touch()
        time.sleep(120)
    return (os.getpid(),)


def hang(task: Task) -> tuple[int, ...]:
    if task.key == "t01":
        time.sleep(120)
    return (1,)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_passing_error_is_tried_again(tmp_path: Path, workers: int) -> None:
    heard = Listener()
    found = Runner(workers=workers, progress=heard).fold(partial(fail_first, folder=tmp_path), tasks(4), ())
    assert found == ("t00", "t01", "t02", "t03")
    assert [n for n in heard.notes if "t01 failed (OSError: passing trouble, number 1) and runs again" in n]


def test_errors_that_go_on_end_the_run(tmp_path: Path) -> None:
    """However different they are; the traceback is in the log, and in Python with the error."""
    heard = Listener()
    with pytest.raises(TaskError, match=r"task t01 failed 3 times: OSError: passing trouble, number 3") as caught:
        Runner(progress=heard).fold(partial(fail_first, folder=tmp_path, times=9), tasks(3), ())
    assert "in fail_first" in heard.notes[-1] and heard.notes[-1].startswith("Traceback")
    assert "in fail_first" in caught.value.__notes__[0]


def test_less_memory_is_tried() -> None:
    """A task that ran out of memory is given half, down to what it needs at least."""
    task = Task("t00", 64 * MIB, 8 * MIB)
    assert Runner().fold(short_of_memory, [task], ()) == (16 * MIB,)
    with pytest.raises(TaskError, match="task t00 ran out of memory 2 times: give a larger --memory"):
        Runner().fold(short_of_memory, [Task("t00", 64 * MIB, 32 * MIB)], ())


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    """Its task is done by another one; what was finished is not done again."""
    heard = Listener()
    ledger = Ledger(Backend(str(tmp_path / "store")), "stage", "digest")
    runner = Runner(workers=2, progress=heard, patience=6.0)
    start = time.monotonic()
    outcome = runner.fill(partial(_noted, folder=tmp_path), tasks(4), ledger)
    assert time.monotonic() - start < 100
    assert outcome.tasks_done == 4 and outcome.retried == 1
    assert any("t01 has taken more than 6 s: its worker is ended" in text for text in heard.notes)


def _noted(task: Task, folder: Path) -> dict[str, float]:
    hang_once(task, folder)
    return {}


def test_threads_cannot_be_ended() -> None:
    """An executor that somebody brings is his own to end: one line says so."""
    threads = ThreadPoolExecutor(2)
    try:
        with pytest.raises(TaskError, match="workers cannot be ended from here"):
            Runner(workers=2, executor=threads, patience=0.5).fold(_short_nap, tasks(2), ())
    finally:
        threads.shutdown()


def _short_nap(task: Task) -> tuple[int, ...]:
    time.sleep(4 if task.key == "t01" else 0)
    return (1,)


def test_workers_with_limits_of_their_own() -> None:
    """What a task gets of a cluster's worker, and which limit would do where it is too little."""
    found = share_each(1000 * MIB, 200 * MIB, 3, [Task("a", 300 * MIB, 10 * MIB, libraries=20 * MIB)])
    assert (found.workers, found.each) == (3, 300 * MIB)
    found = share_each(600 * MIB, 200 * MIB, 3, [Task("a", 300 * MIB, 10 * MIB, libraries=20 * MIB)])
    assert 150 * MIB < found.each == int(0.75 * 600 * MIB) - (200 + 20) * MIB - SLACK
    with pytest.raises(BudgetError, match=r"memory limit of at least 478MiB"):
        share_each(400 * MIB, 200 * MIB, 3, [Task("a", 300 * MIB, 110 * MIB, libraries=20 * MIB)])


def test_a_guard_stops_the_run(tmp_path: Path) -> None:
    """Nothing is recorded as done once the store is another run's."""

    def refuse() -> None:
        raise TaskError("no more")

    ledger = Ledger(Backend(str(tmp_path / "store")), "stage", "digest")
    with pytest.raises(TaskError, match="no more"):
        Runner(guard=refuse).fill(_noop, tasks(2), ledger)
    assert ledger.done() == set()


def _noop(task: Task) -> dict[str, float]:
    return {}

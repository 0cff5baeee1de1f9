"""Those who work on tasks: processes of this machine, or an executor that somebody brings."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any, Generic, Protocol, TypeVar

from streamimg3.engine.budget import give_back, seldom_collect, steady_allocator
from streamimg3.engine.task import Task
from streamimg3.errors import StreamImgError, TaskError

T = TypeVar("T")
Work = Callable[[Task], T]


@dataclass(frozen=True)
class Done(Generic[T]):
    """What comes back from a task: its value and the processor seconds it took."""

    key: str
    value: T
    cpu_s: float


class TaskFailure(Exception):
    """A task's work has raised an error: what it was in one line, where, and whether memory was short."""

    def __init__(self, what: str, trace: str, memory: bool) -> None:
        super().__init__(what, trace, memory)
        self.what, self.trace, self.memory = what, trace, memory


class WorkerLost(Exception):
    """The worker of a task is gone: dead, unreachable, or ended because it hung."""


class AllBusy(Exception):
    """Nobody is free just now, though somebody was expected to be."""


class Crew(Protocol):
    """Workers that take one task each at a time."""

    @property
    def places(self) -> int:
        """How many tasks may be handed out and unfinished."""

    @property
    def hands(self) -> int:
        """How many of them are worked on at a time; the oldest ones first."""

    def submit(self, work: Work[T], task: Task) -> Future[Done[T]]:
        """Hand out a task; the future raises WorkerLost, TaskFailure or an error of ours.

        Raises
        ------
        AllBusy
            If nobody can take it just now.
        WorkerLost
            If the worker that was to take it has died.
        """

    def look_after(self, futures: Iterable[Future[Done[Any]]]) -> None:
        """See whether workers are still there; futures of those that are not raise WorkerLost."""

    def end(self, future: Future[Done[Any]]) -> None:
        """End the worker that hangs in a task; its future raises WorkerLost.

        Raises
        ------
        TaskError
            If that is not in one's power.
        """

    def lost_with(self, future: Future[Done[Any]], flying: Iterable[Future[Done[Any]]]) -> list[Future[Done[Any]]]:
        """Return which unfinished futures are lost when one of them is."""


def guarded(work: Work[T], task: Task) -> Done[T]:
    """Run a task; errors of ours pass, others become a TaskFailure with what a person needs to find the cause."""
    start = time.process_time()
    try:
        value = work(task)
        give_back()  # else what one task has freed is held, and counted, beside what the next one needs
        return Done(task.key, value, time.process_time() - start)
    except StreamImgError:
        raise
    except MemoryError:
        raise TaskFailure("it ran out of memory", traceback.format_exc(), True) from None
    except Exception as error:
        raise TaskFailure(f"{type(error).__name__}: {error}", traceback.format_exc(), False) from None


# ---------------------------------------------------------------- processes of this machine
def _idle(task: Task) -> None:
    """Do nothing: the worker has started."""


class Staff:
    """Worker processes that this process starts; those that die are replaced."""

    def __init__(self) -> None:
        self._load: Callable[[], None] | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._broken = False
        self.workers = 0
        self.loaded = 0  # bytes of libraries that its tasks have loaded

    def __bool__(self) -> bool:
        """Whether anybody is employed."""
        return self._pool is not None

    @property
    def pids(self) -> set[int]:
        """Process ids."""
        return set(self._pool._processes) if self._pool is not None else set()

    @property
    def places(self) -> int:
        """See :class:`Crew`: as many wait as are worked on, so that nobody stands idle."""
        return 2 * self.workers

    @property
    def hands(self) -> int:
        """See :class:`Crew`."""
        return self.workers

    def hire(self, workers: int, load: Callable[[], None]) -> None:
        """Have so many workers: those at hand if the number fits, else new ones, which do ``load`` when they start."""
        if self._pool is not None and self.workers == workers and not self._broken:
            return
        self.dismiss()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["json"])  # it only starts workers: it need not know anything of ours
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(load,))
        self._load, self.workers, self._broken = load, workers, False

    def dismiss(self) -> None:
        """Send the workers home."""
        if self._pool is not None:
            with suppress(OSError):  # a broken pool may have closed its pipes already
                self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self.workers, self.loaded, self._broken = None, 0, 0, False

    def warm(self) -> None:
        """Let the workers start now."""
        with suppress(WorkerLost):  # found, and told, when there is work
            for _ in range(self.workers):
                self.submit(_idle, Task("none", 0, 0))

    def submit(self, work: Work[T], task: Task) -> Future[Done[T]]:
        """See :class:`Crew`."""
        if self._broken and self._load is not None:
            self.hire(self.workers, self._load)
        if self._pool is None:
            raise WorkerLost("nobody is employed")
        try:
            with _script_unseen():
                return self._pool.submit(guarded, work, task)
        except (BrokenExecutor, OSError) as error:  # a pool that breaks just now has closed its pipes
            self._broken = True
            raise WorkerLost(str(error)) from error

    def look_after(self, futures: Iterable[Future[Done[Any]]]) -> None:
        """See :class:`Crew`; a pool notices by itself."""

    def end(self, future: Future[Done[Any]]) -> None:
        """See :class:`Crew`; nobody knows which process has the task, so all are replaced."""
        if self._pool is not None:
            for process in list(self._pool._processes.values()):
                process.kill()

    def lost_with(self, future: Future[Done[Any]], flying: Iterable[Future[Done[Any]]]) -> list[Future[Done[Any]]]:
        """See :class:`Crew`: a pool that has lost a process gives up all its tasks."""
        self._broken = True
        return list(flying)


# ---------------------------------------------------------------- an executor that somebody brings
class Brought:
    """Any executor of ``concurrent.futures``: its workers are not ours to replace.

    Parameters
    ----------
    executor : Executor
        Where tasks are submitted.
    workers : int
        How many tasks it works on at a time.
    """

    def __init__(self, executor: Executor, workers: int) -> None:
        self._executor = executor
        self.workers = workers

    @property
    def places(self) -> int:
        """See :class:`Crew`."""
        return 2 * self.workers

    @property
    def hands(self) -> int:
        """See :class:`Crew`."""
        return self.workers

    def submit(self, work: Work[T], task: Task) -> Future[Done[T]]:
        """See :class:`Crew`."""
        try:
            with _script_unseen():
                return self._executor.submit(guarded, work, task)
        except (BrokenExecutor, RuntimeError) as error:
            raise TaskError(
                f"the executor takes no task ({error}): what is finished is kept; run again with a new executor"
            ) from error

    def look_after(self, futures: Iterable[Future[Done[Any]]]) -> None:
        """See :class:`Crew`."""

    def end(self, future: Future[Done[Any]]) -> None:
        """See :class:`Crew`."""
        raise TaskError("the executor's workers cannot be ended from here: what is finished is kept; run again")

    def lost_with(self, future: Future[Done[Any]], flying: Iterable[Future[Done[Any]]]) -> list[Future[Done[Any]]]:
        """See :class:`Crew`."""
        return [future]


@contextmanager
def _script_unseen() -> Iterator[None]:
    """Start processes without the user's script, which they would otherwise run again from the top.

    Work functions live in importable modules, so nothing of the script is needed; without this every script with
    workers would want an ``if __name__ == "__main__"`` around its calls.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _end_with_driver() -> None:
    """End this worker when the driver is gone, however it went: nobody would take its results."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        wait_for([driver.sentinel])
        os._exit(1)


def _settle(load: Callable[[], None]) -> None:
    """Make a worker one-threaded, steady in memory and quiet (the driver alone answers to Ctrl-C), and load what it needs."""
    import signal

    steady_allocator()
    threading.Thread(target=_end_with_driver, daemon=True).start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seldom_collect()
    load()
    gc.freeze()  # libraries are no garbage: not looked through again and again

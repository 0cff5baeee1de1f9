"""Runs tasks within a memory budget, in this process or in others, and survives the loss of a worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait as wait_for
from typing import Any, Generic, TypeVar

from streamimg3.engine.budget import (
    MIB,
    Share,
    Watch,
    give_back,
    resident,
    resident_family,
    seldom_collect,
    share,
    steady_allocator,
)
from streamimg3.engine.receipts import Ledger
from streamimg3.engine.task import Task
from streamimg3.errors import BudgetError, StreamImgError, TaskError

T = TypeVar("T")
Work = Callable[[Task], T]
_TRIES = 3


@dataclass(frozen=True)
class Done(Generic[T]):
    """What comes back from a task: its value and the processor seconds it took."""

    key: str
    value: T
    cpu_s: float


@dataclass
class Outcome:
    """What a stage took; filled while it runs."""

    tasks_done: int = 0
    tasks_kept: int = 0
    pixels: int = 0
    retried: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss: int = 0
    projected: int = 0
    remote: bool = False
    split: dict[str, float] = field(default_factory=dict)

    def __iadd__(self, other: Outcome) -> Outcome:
        """Count what another part of the stage took."""
        for name in ("tasks_done", "tasks_kept", "pixels", "retried", "wall_s", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak_rss = max(self.peak_rss, other.peak_rss)
        self.projected = max(self.projected, other.projected)
        self.remote = self.remote or other.remote
        for kind, seconds in other.split.items():
            self.split[kind] = self.split.get(kind, 0.0) + seconds
        return self


class Progress:
    """What a stage tells about itself while it runs; this one is silent, the command line has one that talks."""

    def start(self, stage: str, total: int, kept: int) -> None:
        """A stage begins: ``kept`` of ``total`` tasks were done before."""

    def advance(self, stage: str, key: str, rss: int) -> None:
        """A task has finished; ``rss`` bytes are resident in driver and workers."""

    def finish(self, stage: str, outcome: Outcome) -> None:
        """The stage has ended."""

    def note(self, text: str) -> None:
        """Something worth a line in the log."""


def _timed(work: Work[T], task: Task) -> Done[T]:
    start = time.process_time()
    value = work(task)
    give_back()  # else what one task has freed is held, and counted, beside what the next one needs
    return Done(task.key, value, time.process_time() - start)


def _idle(task: Task) -> None:
    """Do nothing: the worker has started."""


def _nothing() -> None:
    """There is nothing to be loaded."""


@dataclass
class Runner:
    """Memory, workers and executor of a run.

    Parameters
    ----------
    memory : int or None
        Budget in bytes for driver and workers together.
    workers : int
        Worker processes; 1 = everything in this process.
    progress : Progress
        Who is told.
    executor : Executor or None
        A ready executor (for example of a Dask cluster) instead of local processes.
    load : callable
        Loads what the work needs: in every worker when it starts, and in this process when it works alone; a function
        of a module, for workers must find it.
    """

    memory: int | None = None
    workers: int = 1
    progress: Progress = field(default_factory=Progress)
    executor: Executor | None = None
    load: Callable[[], None] = _nothing
    _staff: tuple[int, ProcessPoolExecutor] | None = field(default=None, init=False, repr=False)
    _keep: bool = field(default=False, init=False, repr=False)
    _loaded: int = field(default=0, init=False, repr=False)  # bytes of libraries that the staff's tasks have loaded

    def __post_init__(self) -> None:
        steady_allocator()

    def check(self, tasks: Sequence[Task]) -> Share:
        """Return how the budget is shared for these tasks.

        Raises
        ------
        BudgetError
            If the budget cannot hold them.
        """
        give_back()  # what earlier stages have freed is not this one's
        try:
            granted = self._shared(tasks)
            if granted.workers > 1 or self.executor is not None:
                return granted
        except BudgetError:
            pass  # said again below, with the numbers of a process that has loaded everything
        self.load()  # this process is the worker: what it loads counts as the driver's
        return share(self.memory, self.workers, tasks)

    def require(self, tasks: Sequence[Task]) -> None:
        """Refuse a budget that cannot hold tasks that are to come, whoever will work on them.

        Raises
        ------
        BudgetError
            Naming the largest and the smallest budget that works.
        """
        give_back()  # headers that have been read, for example
        try:
            share(self.memory, self.workers, tasks)
        except BudgetError:
            self.load()  # said again with the numbers of a process that works alone
            share(self.memory, self.workers, tasks)

    def _shared(self, tasks: Sequence[Task]) -> Share:
        """Share with the workers at hand as large as they have become; if fresh ones serve better, those are dismissed."""
        if self._staff is None:
            return share(self.memory, self.workers, tasks)
        workers, _ = self._staff
        fresh = share(self.memory, self.workers, [*tasks] * workers)
        kept = self._kept(tasks, workers)
        # Starting anew takes a second or two of every worker; far less memory may mean bands that are read many times.
        if kept is not None and kept.workers == workers == fresh.workers and 4 * kept.each >= fresh.each:
            return kept
        self._dismiss()
        return share(self.memory, self.workers, tasks)

    def _kept(self, tasks: Sequence[Task], workers: int) -> Share | None:
        """Share with the workers at hand: they have loaded some libraries, and hold what they hold."""
        knowing = [replace(t, libraries=max(0, t.libraries - self._loaded)) for t in tasks]
        try:  # a single task, too, goes to the workers that are there
            return share(self.memory, workers, knowing * workers, helpers=resident_family() - resident())
        except BudgetError:
            return None

    def warm(self) -> None:
        """Start the workers that the budget will carry, if any, while this process does something else."""
        none = Task("none", 64 * MIB, 64 * MIB)
        try:
            workers = share(self.memory, self.workers, [none] * self.workers).workers
        except BudgetError:
            return  # said when there are tasks
        if self._keep and self.executor is None and workers > 1 and self._staff is None:
            pool = self._hire(workers)
            with suppress(BrokenProcessPool):  # found broken, and told, when there is work
                for _ in range(workers):
                    _submit(pool, _idle, none)

    def fill(self, work: Work[dict[str, float]], tasks: Sequence[Task], ledger: Ledger) -> Outcome:
        """Run independent tasks that write their own regions; those with a receipt are not run again.

        Parameters
        ----------
        work : callable
            Takes a task, writes its region, returns seconds by kind of work.
        tasks : sequence of Task
            What is to be done.
        ledger : Ledger
            Receipts; one is written when a task's region is complete.

        Raises
        ------
        TaskError
            If a task fails; what is finished stays finished.
        """
        finished = ledger.done()
        area = {t.key: sum((y1 - y0) * (x1 - x0) for _, (y0, x0, y1, x1) in t.reads or t.writes) for t in tasks}
        todo = [t for t in tasks if t.key not in finished]
        outcome = Outcome(tasks_kept=len(tasks) - len(todo))
        with self._watched(ledger.stage, tasks, todo, outcome) as watch:
            for done in self._run(work, todo, outcome):
                ledger.mark(done.key)
                outcome.tasks_done += 1
                outcome.pixels += area[done.key]
                outcome.cpu_s += done.cpu_s if outcome.remote else 0.0
                for kind, seconds in done.value.items():
                    outcome.split[kind] = outcome.split.get(kind, 0.0) + seconds
                self.progress.advance(ledger.stage, done.key, watch.now)
        self.progress.finish(ledger.stage, outcome)
        return outcome

    def fold(
        self, work: Work[T], tasks: Sequence[Task], zero: T, stage: str = "fold", cost: Outcome | None = None
    ) -> T:
        """Run independent tasks and add up their values, in task order (so that floats give the same bits always).

        What it took is added to ``cost``.
        """
        outcome, values = Outcome(), {}
        with self._watched(stage, tasks, list(tasks), outcome) as watch:
            for done in self._run(work, list(tasks), outcome):
                values[done.key] = done.value
                outcome.tasks_done += 1
                outcome.cpu_s += done.cpu_s if outcome.remote else 0.0
                self.progress.advance(stage, done.key, watch.now)
        self.progress.finish(stage, outcome)
        if cost is not None:
            cost += outcome
        total: Any = zero
        for task in tasks:
            total = total + values[task.key]
        result: T = total
        return result

    @contextmanager
    def _watched(self, stage: str, tasks: Sequence[Task], todo: Sequence[Task], outcome: Outcome) -> Iterator[Watch]:
        """Measure wall, processor time and memory around a stage."""
        if todo:
            granted = self.check(todo)
            outcome.projected = granted.projected
            outcome.remote = granted.workers > 1 or self.executor is not None
        self.progress.start(stage, len(tasks), len(tasks) - len(todo))
        wall, cpu = time.monotonic(), time.process_time()
        with Watch() as watch:
            try:
                yield watch
            finally:
                outcome.wall_s += time.monotonic() - wall
                outcome.cpu_s += time.process_time() - cpu
        outcome.peak_rss = max(outcome.peak_rss, watch.peak)

    def _run(self, work: Work[T], todo: list[Task], outcome: Outcome) -> Iterator[Done[T]]:
        if not todo:
            return
        granted = self.check(todo)
        tasks = [replace(t, limit=min(granted.each, t.nbytes)) for t in todo]
        if self.executor is None and granted.workers == 1:
            self._dismiss()  # their memory is this process's now
            for task in tasks:
                yield _guarded(work, task)
        elif self.executor is not None:
            yield from self._drain(self.executor, work, tasks, granted.workers)
        else:
            yield from self._run_pool(work, tasks, granted.workers, outcome)

    def _run_pool(self, work: Work[T], tasks: list[Task], workers: int, outcome: Outcome) -> Iterator[Done[T]]:
        """Run on local processes; a pool whose worker died is replaced and its unfinished tasks run again."""
        left = {t.key: t for t in tasks}
        losses = 0
        while left:
            pool = self._hire(workers)
            self._loaded = max(self._loaded, *(t.libraries for t in tasks))
            before = len(left)
            try:
                for done in self._drain(pool, work, list(left.values()), workers):
                    del left[done.key]
                    yield done
            except BrokenProcessPool as error:
                losses = losses + 1 if len(left) == before else 1
                outcome.retried += 1
                if losses > _TRIES:
                    keys = ", ".join(list(left)[:workers])
                    raise TaskError(
                        f"workers died {losses} times in a row at tasks {keys}: give each more memory (--memory, fewer --workers),"
                        " or mend what they said above when they started"
                    ) from error
                self.progress.note(f"a worker died; {len(left)} unfinished tasks run again")
                self._dismiss()
            finally:
                if not self._keep:
                    self._dismiss()

    def _hire(self, workers: int) -> ProcessPoolExecutor:
        """Return a pool of so many workers: the one at hand if it fits, for it has loaded everything."""
        if self._staff is not None and self._staff[0] == workers:
            return self._staff[1]
        self._dismiss()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["json"])  # it only starts workers: it need not know anything of ours
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(self.load,))
        self._staff = (workers, pool)
        return pool

    def _dismiss(self) -> None:
        """Send the workers home."""
        if self._staff is not None:
            with suppress(OSError):  # a broken pool may have closed its pipes already
                self._staff[1].shutdown(wait=True, cancel_futures=True)
            self._staff, self._loaded = None, 0

    def __enter__(self) -> Runner:
        """Keep the workers from stage to stage until the block ends."""
        self._keep = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._keep = False
        self._dismiss()

    def _drain(self, pool: Executor, work: Work[T], tasks: list[Task], workers: int) -> Iterator[Done[T]]:
        """Keep a few tasks in flight and yield results as they come."""
        queue = iter(tasks)
        flying: dict[Future[Done[T]], Task] = {}
        try:
            while True:
                while len(flying) < 2 * workers and (task := next(queue, None)) is not None:
                    flying[_submit(pool, work, task)] = task
                if not flying:
                    return
                ready, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=lambda f: f.exception() is not None):  # what is finished comes first
                    del flying[future]
                    yield _result(future)
        finally:
            for future in flying:
                future.cancel()


def _submit(pool: Executor, work: Work[T], task: Task) -> Future[Done[T]]:
    """Hand a task to a pool."""
    try:
        with _script_unseen():
            return pool.submit(_guarded, work, task)
    except OSError as error:
        raise _broken(error) from error


def _result(future: Future[Done[T]]) -> Done[T]:
    """Return what a task gave back."""
    try:
        return future.result()
    except OSError as error:
        raise _broken(error) from error


def _broken(error: OSError) -> BrokenProcessPool:
    """A pool that breaks just now fails with a closed pipe; a task's own errors are told otherwise (``_guarded``)."""
    return BrokenProcessPool(f"the pool's pipes are closed: {error}")


def _guarded(work: Work[T], task: Task) -> Done[T]:
    """Run a task; errors of ours pass, others are told with the task's key."""
    try:
        return _timed(work, task)
    except StreamImgError:
        raise
    except MemoryError as error:
        raise TaskError(f"task {task.key} ran out of memory: give a larger --memory or fewer --workers") from error
    except Exception as error:
        raise TaskError(f"task {task.key} failed: {type(error).__name__}: {error}") from error


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

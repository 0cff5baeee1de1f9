"""Runs tasks within a memory budget, in this process or in others, and survives the loss of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from streamimg3.engine.budget import (
    MIB,
    Share,
    Watch,
    give_back,
    resident,
    resident_family,
    share,
    share_each,
    steady_allocator,
)
from streamimg3.engine.cluster import Cluster
from streamimg3.engine.crew import Brought, Crew, Done, Staff, Work
from streamimg3.engine.drain import Attempts, Drain, alone
from streamimg3.engine.receipts import Ledger
from streamimg3.engine.task import Task
from streamimg3.errors import BudgetError

T = TypeVar("T")


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


def _nothing() -> None:
    """There is nothing to be loaded."""


def _standing_for(tasks: Sequence[Task]) -> Task:
    """Return a task as demanding as any of these."""
    largest = max(tasks, key=lambda t: t.least)
    return replace(largest, nbytes=max(t.nbytes for t in tasks), libraries=max(t.libraries for t in tasks))


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
    executor : Executor, Cluster or None
        A ready executor or a Dask cluster instead of local processes. Workers of a cluster are held to their own memory
        limits; an executor's count as this machine's.
    load : callable
        Loads what the work needs: in every worker when it starts, and in this process when it works alone; a function
        of a module, for workers must find it.
    patience : float or None
        Seconds that a task may take in a worker before that counts as hanging, is ended, and the task runs again.
    guard : callable
        Called whenever a result has come back; raises if the run must not go on.
    """

    memory: int | None = None
    workers: int = 1
    progress: Progress = field(default_factory=Progress)
    executor: Executor | Cluster | None = None
    load: Callable[[], None] = _nothing
    patience: float | None = None
    guard: Callable[[], None] = _nothing
    _staff: Staff = field(init=False, repr=False)
    _guests: Brought | Cluster | None = field(default=None, init=False, repr=False)
    _keep: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        steady_allocator()
        self._staff = Staff()
        if isinstance(self.executor, Executor):
            self._guests = Brought(self.executor, self.workers)
        else:
            self._guests = self.executor

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
            if granted.workers > 1 or self._guests is not None:
                return granted
        except BudgetError:
            if isinstance(self._guests, Cluster):
                raise
            pass  # said again below, with the numbers of a process that has loaded everything
        self.load()  # this process is the worker: what it loads counts as the driver's
        return share(self.memory, self.workers, tasks)

    def require(self, tasks: Sequence[Task]) -> Share:
        """Refuse a budget that cannot hold tasks that are to come, whoever will work on them; returns how it is shared.

        Raises
        ------
        BudgetError
            Naming the largest and the smallest budget that works.
        """
        give_back()  # headers that have been read, for example
        if isinstance(self._guests, Cluster):
            return self._shared(tasks)
        try:
            return share(self.memory, self.workers, tasks)
        except BudgetError:
            self.load()  # said again with the numbers of a process that works alone
            return share(self.memory, self.workers, tasks)

    def _shared(self, tasks: Sequence[Task]) -> Share:
        """Share with the workers at hand as large as they have become; if fresh ones serve better, those are dismissed."""
        if isinstance(self._guests, Cluster):
            limit, floor = self._guests.memory
            return share_each(limit or self.memory, floor, self._guests.places, tasks)
        if not self._staff or self._guests is not None:
            return share(self.memory, self.workers, tasks)
        workers = self._staff.workers
        typical = _standing_for(tasks)  # a single task, too, goes to the workers that are there
        fresh = share(self.memory, self.workers, [typical] * workers)
        kept = self._kept(typical, workers)
        # Starting anew takes a second or two of every worker; far less memory may mean bands that are read many times.
        if kept is not None and kept.workers == workers == fresh.workers and 4 * kept.each >= fresh.each:
            return kept
        self._staff.dismiss()
        return share(self.memory, self.workers, tasks)

    def _kept(self, task: Task, workers: int) -> Share | None:
        """Share with the workers at hand: they have loaded some libraries, and hold what they hold."""
        knowing = replace(task, libraries=max(0, task.libraries - self._staff.loaded))
        try:
            return share(self.memory, workers, [knowing] * workers, helpers=resident_family() - resident())
        except BudgetError:
            return None

    def warm(self) -> None:
        """Start the workers that the budget will carry, if any, while this process does something else."""
        none = Task("none", 64 * MIB, 64 * MIB)
        try:
            workers = share(self.memory, self.workers, [none] * self.workers).workers
        except BudgetError:
            return  # said when there are tasks
        if self._keep and self._guests is None and workers > 1 and not self._staff:
            self._staff.hire(workers, self.load)
            self._staff.warm()

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
                self.guard()
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
                self.guard()
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
            outcome.remote = granted.workers > 1 or self._guests is not None
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
        attempts = Attempts(self.progress.note)
        crew = self._crew_for(granted.workers, todo)
        try:
            if crew is None:
                yield from alone(work, tasks, attempts)
            else:
                yield from Drain(crew, work, attempts, self.patience).run(tasks)
        finally:
            outcome.retried += attempts.retried
            if not self._keep:
                self._staff.dismiss()

    def _crew_for(self, workers: int, tasks: Sequence[Task]) -> Crew | None:
        """Return who does some tasks; None = this process."""
        if self._guests is not None:
            return self._guests
        if workers == 1:
            self._staff.dismiss()  # their memory is this process's now
            return None
        self._staff.hire(workers, self.load)
        self._staff.loaded = max(self._staff.loaded, *(t.libraries for t in tasks))
        return self._staff

    def __enter__(self) -> Runner:
        """Keep the workers from stage to stage until the block ends."""
        self._keep = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._keep = False
        self._staff.dismiss()

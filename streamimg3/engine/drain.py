"""Tasks are handed out and come back; those that are lost, hang or fail are tried again, a bounded number of times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from streamimg3.engine.crew import AllBusy, Crew, Done, TaskFailure, Work, WorkerLost, guarded
from streamimg3.engine.task import Task
from streamimg3.errors import TaskError

T = TypeVar("T")
TRIES = 3  # times that a task may lose its worker, or fail in different ways
_TICK = 1.0  # seconds between two looks at workers that say nothing
_FAREWELL = 60.0  # seconds to wait for tasks that are being worked on when the run ends
_LOST = (WorkerLost, BrokenExecutor, CancelledError, OSError)  # a task's own errors are told otherwise (``guarded``)


@dataclass
class Attempts:
    """How often tasks were tried, and how they ended.

    Parameters
    ----------
    note : callable
        Takes a line for the log.
    """

    note: Callable[[str], None]
    retried: int = 0
    _losses: dict[str, int] = field(default_factory=dict)
    _failures: dict[str, list[str]] = field(default_factory=dict)

    def lost(self, running: Sequence[Task], unfinished: int, why: str) -> None:
        """Count a loss for the tasks that were being worked on.

        Raises
        ------
        TaskError
            If one of them has lost too many workers.
        """
        self.retried += 1
        for task in running:
            self._losses[task.key] = self._losses.get(task.key, 0) + 1
        most = max((self._losses[t.key] for t in running), default=0)
        if most > TRIES:
            keys = ", ".join(t.key for t in running if self._losses[t.key] == most)
            raise TaskError(
                f"workers died {most} times in a row at tasks {keys} ({why}): give each more memory (--memory, fewer --workers,"
                " a larger --memory-limit of the cluster's workers), more time (--task-limit), or mend what they said above"
            )
        self.note(f"a worker died; {unfinished} unfinished tasks run again ({why})")

    def failed(self, task: Task, failure: TaskFailure) -> Task:
        """Return a task for another try; after a lack of memory with less of it.

        Raises
        ------
        TaskError
            If it has failed the same way before, or too often.
        """
        before = self._failures.setdefault(task.key, [])
        before.append(failure.what)
        least = failure.memory and task.limit <= task.least
        if len(before) >= TRIES or least or (not failure.memory and before.count(failure.what) > 1):
            self.note(failure.trace.rstrip())
            raise _given_up(task, failure, len(before))
        self.retried += 1
        self.note(f"task {task.key} failed ({failure.what}) and runs again")
        return smaller(task) if failure.memory else task


def smaller(task: Task) -> Task:
    """Return a task that holds half as much, where it can: the result does not depend on it."""
    return replace(task, limit=max(task.least, task.limit // 2))


def _given_up(task: Task, failure: TaskFailure, times: int) -> TaskError:
    often = "" if times == 1 else f" {times} times"
    if failure.memory:
        error = TaskError(f"task {task.key} ran out of memory{often}: give a larger --memory or fewer --workers")
    else:
        error = TaskError(f"task {task.key} failed{often}: {failure.what}")
    error.add_note(failure.trace)
    return error


def alone(work: Work[T], tasks: Sequence[Task], attempts: Attempts) -> Iterator[Done[T]]:
    """Do the tasks in this process, one after the other."""
    for task in tasks:
        current: Task = task
        while True:
            try:
                done = guarded(work, current)
                break
            except TaskFailure as failure:
                current = attempts.failed(current, failure)
        yield done


@dataclass
class Drain(Generic[T]):
    """Keeps a few tasks in flight and gives results as they come.

    Parameters
    ----------
    crew : Crew
        Who works.
    work : callable
        What is done to a task.
    attempts : Attempts
        Counts what is tried again.
    patience : float or None
        Seconds that a task may take before its worker counts as hanging.
    """

    crew: Crew
    work: Work[T]
    attempts: Attempts
    patience: float | None = None
    _waiting: deque[Task] = field(default_factory=deque)
    _flying: dict[Future[Done[T]], Task] = field(default_factory=dict)
    _since: dict[Future[Done[T]], float] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    def run(self, tasks: Sequence[Task]) -> Iterator[Done[T]]:
        """Yield what comes back; tasks are handed out in their order.

        Raises
        ------
        TaskError
            If a task is given up.
        """
        self._waiting.extend(tasks)
        try:
            while self._waiting or self._flying:
                self._hand_out()
                ready, _ = wait(self._flying, timeout=_TICK, return_when=FIRST_COMPLETED)
                yield from self._taken(ready)
                self._look_after()
        finally:
            for future in self._flying:
                future.cancel()
            wait(self._flying, timeout=_FAREWELL)  # nothing is written any more when the run has ended

    def _hand_out(self) -> None:
        while self._waiting and len(self._flying) < self.crew.places:
            task = self._waiting.popleft()
            try:
                self._flying[self.crew.submit(self.work, task)] = task
            except AllBusy:
                self._waiting.appendleft(task)
                break
            except WorkerLost as error:
                self._waiting.appendleft(task)
                self._lose(list(self._flying), str(error), [] if self._flying else [task])
        now = time.monotonic()
        for future in list(self._flying)[: self.crew.hands]:
            self._since.setdefault(future, now)

    def _taken(self, ready: set[Future[Done[T]]]) -> Iterator[Done[T]]:
        """Results; what is finished comes first, so that a loss does not take it along."""
        for future in sorted(ready, key=_went_wrong):
            if future not in self._flying:
                continue  # lost with another one
            try:
                done = future.result()
            except TaskFailure as failure:
                self._since.pop(future, None)
                self._waiting.appendleft(self.attempts.failed(self._flying.pop(future), failure))
            except _LOST as error:
                self._lose(self.crew.lost_with(future, self._flying), str(error))
            else:
                self._since.pop(future, None)
                del self._flying[future]
                yield done

    def _lose(self, futures: Sequence[Future[Done[Any]]], why: str, more: Sequence[Task] = ()) -> None:
        """Tasks whose worker is gone come first in the queue again; those that were worked on with less memory."""
        lost = [f for f in futures if not f.done() or _went_wrong(f)]  # what came back before is taken later
        taken = [(self._flying.pop(f), self._since.pop(f, None) is not None) for f in lost]
        self._waiting.extendleft(smaller(task) if running else task for task, running in reversed(taken))
        running = [*more, *(task for task, was in taken if was)]
        self.attempts.lost(
            running, len(self._waiting) + len(self._flying), why.splitlines()[0] if why else "no word from it"
        )

    def _look_after(self) -> None:
        """End workers that hang, and find those that are gone; once a second."""
        if time.monotonic() - self._looked < _TICK:
            return
        self._looked = time.monotonic()
        if self.patience is not None:
            limit = time.monotonic() - self.patience
            for future in [f for f, start in self._since.items() if start < limit]:
                task = self._flying[future]
                self.attempts.note(f"task {task.key} has taken more than {self.patience:.0f} s: its worker is ended")
                self._since[future] = time.monotonic()
                self.crew.end(future)
        self.crew.look_after(self._flying)


def _went_wrong(future: Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None

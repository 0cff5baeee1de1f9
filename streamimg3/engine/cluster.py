"""A Dask cluster as a crew: every worker process has one task at a time, and its own memory limit."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from streamimg3.engine.budget import give_back, resident, show_size, steady_allocator
from streamimg3.engine.crew import AllBusy, Done, Work, WorkerLost, guarded
from streamimg3.engine.task import Task
from streamimg3.errors import InputError, TaskError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
_CONNECT = 20.0  # seconds to wait for a scheduler, and for its first worker
_ALONE = 90.0  # seconds to wait for a worker to come back where none is left
_LOOK = 2.0  # seconds between two looks at the list of workers


def connect(address: str) -> Client:
    """Return a client of a running Dask cluster.

    Parameters
    ----------
    address : str
        ``tcp://host:port`` (``tls://``, ``ws://`` …) of the scheduler, or the scheduler file that it has written.

    Raises
    ------
    InputError
        If Dask is not installed or nobody answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"--cluster {address}: needs Dask ({error}): pip install '.[cluster]' in the clone") from error
    if "://" not in address and not os.path.isfile(address):
        raise InputError(
            f"--cluster {address}: there is no such scheduler file: start the scheduler first, or give tcp://host:port"
        )
    where = {"address": address} if "://" in address else {"scheduler_file": address}
    try:
        return Client(**where, timeout=_CONNECT, set_as_default=False, name="streamimg3")
    except (OSError, TimeoutError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--cluster {address}: no Dask scheduler answers there ({line})") from error


class Cluster:
    """The workers of a Dask client.

    Tasks are pinned to workers, one each: a worker's memory is then that task's, a task that hangs tells which worker
    to end, and consecutive tasks, which are neighbours, go to workers side by side.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    load : callable
        What each worker loads before its first task; a function of a module.

    Raises
    ------
    InputError
        If there is no worker, or one has not this version of the package.
    """

    def __init__(self, client: Client, load: Callable[[], None]) -> None:
        self._client, self._load = client, load
        self._busy: dict[Future[Done[Any]], tuple[str, Any]] = {}
        self._refused: set[str] = set()  # workers that hung and could not be ended
        self._seen, self._known = 0.0, dict[str, int]()
        if not self._workers(_CONNECT):
            raise InputError(f"the cluster at {client.scheduler.address} has no workers: start some (dask worker …)")
        self._floor = max(self._check_all())

    # ---------------------------------------------------------------- what there is
    def _alive(self) -> dict[str, int]:
        """Addresses of workers with their memory limits in bytes, 0 = none; asked for every two seconds at most."""
        if time.monotonic() - self._seen > _LOOK:
            try:
                found = self._client.scheduler_info(n_workers=-1)["workers"]
            except (OSError, TimeoutError, RuntimeError, ValueError) as error:
                raise _gone(str(error) or type(error).__name__) from error
            self._known = {address: int(w["memory_limit"] or 0) for address, w in found.items()}
            self._seen = time.monotonic()
        return {address: limit for address, limit in self._known.items() if address not in self._refused}

    def _workers(self, patience: float) -> dict[str, int]:
        """The same, with some time for the first worker to appear."""
        end = time.monotonic() + patience
        while not (found := self._alive()) and time.monotonic() < end:
            time.sleep(0.2)
            self._seen = 0.0
        return found

    def _check_all(self) -> list[int]:
        """Load what tasks need in all workers; returns what each has resident then."""
        ours = _version()
        answers = self._client.run(_ready, self._load, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, BaseException):
                raise InputError(
                    f"worker {address} cannot load streamimg3 ({type(answer).__name__}: {answer}): install the same"
                    " version there"
                )
            if answer[0] != ours:
                raise InputError(
                    f"worker {address} has streamimg3 {answer[0]}, this is {ours}: install the same version"
                )
        return [int(floor) for _, floor in answers.values()]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def describe(self) -> str:
        """Return what there is in words."""
        workers = self._workers(_CONNECT)
        limits = sorted({show_size(limit) if limit else "no limit" for limit in workers.values()})
        return f"{len(workers)} workers at {self._client.scheduler.address}, memory of each: {', '.join(limits)}"

    @property
    def memory(self) -> tuple[int | None, int]:
        """Smallest memory limit of a worker (None = they have none), and what one has resident while idle; bytes."""
        limits = [limit for limit in self._workers(_ALONE).values() if limit]
        return (min(limits) if limits else None), self._floor

    @property
    def places(self) -> int:
        """See :class:`streamimg3.engine.crew.Crew`."""
        return max(1, len(self._alive()))

    @property
    def hands(self) -> int:
        """See :class:`streamimg3.engine.crew.Crew`."""
        return self.places

    # ---------------------------------------------------------------- tasks
    def submit(self, work: Work[T], task: Task) -> Future[Done[T]]:
        """See :class:`streamimg3.engine.crew.Crew`."""
        address = self._free()
        future: Future[Done[T]] = Future()
        future.set_running_or_notify_cancel()
        there = self._client.submit(
            _remote, self._load, work, task, key=f"{task.key}-{uuid.uuid4().hex}", workers=[address], pure=False,
            allow_other_workers=False, retries=0,
        )  # fmt: skip
        self._busy[future] = (address, there)
        there.add_done_callback(lambda done: self._came_back(future, done))
        return future

    def _free(self) -> str:
        """A worker without a task."""
        end = time.monotonic() + _ALONE
        while True:
            busy = {address for f, (address, _) in list(self._busy.items()) if not f.done()}
            for address in self._alive():
                if address not in busy:
                    return address
            if busy:
                raise AllBusy
            if time.monotonic() > end:
                raise TaskError(
                    "the cluster has no workers any more: what is finished is kept; run again when there are some"
                )
            time.sleep(0.2)

    def _came_back(self, future: Future[Done[Any]], done: Any) -> None:
        """Hand on how a task ended (called in a thread of the client)."""
        with suppress(Exception):  # the future was lost before: nobody waits for it
            try:
                if done.status == "finished":
                    future.set_result(done.result(timeout=60))
                elif done.status == "error":
                    future.set_exception(_told(done.exception(timeout=60)))
                else:
                    future.set_exception(WorkerLost(f"the task was {done.status}"))
            except Exception as error:  # the worker died with the result
                future.set_exception(WorkerLost(str(error)))

    def look_after(self, futures: Iterable[Future[Done[Any]]]) -> None:
        """See :class:`streamimg3.engine.crew.Crew`."""
        if self._client.status not in ("running", "connecting"):
            raise TaskError(
                f"the connection to the cluster is {self._client.status}: what is finished is kept; run again"
            )
        alive = self._alive()
        for future in futures:
            if not future.done() and (address := self._busy[future][0]) not in alive:
                self._lose(future, f"worker {address} is gone")
        self._busy = {f: entry for f, entry in self._busy.items() if not f.done()}

    def _lose(self, future: Future[Done[Any]], why: str) -> None:
        _, there = self._busy[future]
        with suppress(Exception):  # it came back just now
            future.set_exception(WorkerLost(why))
        there.cancel(force=True)

    def end(self, future: Future[Done[Any]]) -> None:
        """See :class:`streamimg3.engine.crew.Crew`; a worker without nanny cannot be ended and gets no more tasks."""
        address, _ = self._busy[future]
        try:
            self._client.restart_workers([address], timeout=30, raise_for_error=True)
        except (ValueError, RuntimeError, TimeoutError, OSError):
            self._refused.add(address)
        self._seen = 0.0
        self._lose(future, f"worker {address} hung")

    def lost_with(self, future: Future[Done[Any]], flying: Iterable[Future[Done[Any]]]) -> list[Future[Done[Any]]]:
        """See :class:`streamimg3.engine.crew.Crew`: each worker is for itself."""
        self._seen = 0.0
        return [future]


def _gone(why: str) -> TaskError:
    line = why.splitlines()[0]
    return TaskError(
        f"the cluster's scheduler does not answer ({line}): what is finished is kept; run again when it does"
    )


def _told(error: BaseException | None) -> BaseException:
    """An error of the task itself as it is; what the scheduler says of a worker that died as a loss."""
    from distributed.scheduler import KilledWorker

    if error is None or isinstance(error, KilledWorker):
        return WorkerLost(str(error).splitlines()[0] if error else "no word from it")
    return error


@lru_cache(maxsize=1)
def _steadied() -> None:
    steady_allocator()


def _settled(load: Callable[[], None]) -> None:
    """Load what tasks need; what is loaded already costs next to nothing."""
    _steadied()
    load()


def _ready(load: Callable[[], None]) -> tuple[str, int]:
    """Load what tasks need; returns the package's version and the resident bytes."""
    _settled(load)
    give_back()
    return _version(), resident()


def _version() -> str:
    """Version of the package that this module is part of."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def _remote(load: Callable[[], None], work: Work[T], task: Task) -> Done[T]:
    """What a worker does."""
    _settled(load)
    return guarded(work, task)

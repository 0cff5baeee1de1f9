"""How a run is carried out, as opposed to what is computed: store, folder, memory, workers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamimg3.engine import Runner
from streamimg3.engine.budget import parse_size
from streamimg3.engine.cluster import Cluster, connect
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError, TaskError
from streamimg3.pipelines import module_of
from streamimg3.store import Observation
from streamimg3.store.lease import Lease

if TYPE_CHECKING:
    from distributed import Client

DEFAULT_MEMORY = "2GiB"
TASK_LIMIT = 3600.0  # s


def load(pipeline: str = "image3") -> None:
    """Load what every worker of a pipeline needs."""
    import streamimg3.formats.ingest
    import streamimg3.kernels.ready  # noqa: F401

    module_of(pipeline)


def load_ingest() -> None:
    """Load what it takes to bring pixels in."""
    import streamimg3.formats.ingest  # noqa: F401


def load_rates() -> None:
    """Load what it takes to calibrate count rates."""
    import streamimg3.formats.ingest
    import streamimg3.kernels.ready_rates
    import streamimg3.pipelines.image2  # noqa: F401


def load_series() -> None:
    """Load what every worker of time series needs that makes no mosaics."""
    import streamimg3.formats.ingest
    import streamimg3.kernels.ready_series
    import streamimg3.pipelines.tso3  # noqa: F401


def _compile(progress: Progress) -> None:
    """See to it that the loops are compiled, before workers start and each does it by itself."""
    from streamimg3.kernels.first_run import compile_loops, compiled

    if not compiled():
        progress.note("the first run of this installation: compiling, about a minute")
        try:
            compile_loops()
        except RuntimeError as error:
            raise TaskError(str(error)) from error


@dataclass
class Session:
    """How a run is carried out, as opposed to what is computed.

    Parameters
    ----------
    store : str or None
        URL of the store; None = ``<output_dir>/<product>.zarr``.
    output_dir : str
        Folder or URL of the products.
    memory : str, int or None
        Budget for driver and workers together.
    workers : int or None
        Worker processes; None = one per processor, as far as the budget carries them; 1 = all in this process.
    storage_options : mapping
        Credentials and endpoint for URLs.
    progress : Progress
        Who is told.
    force : bool
        Ingest again although the store holds something else.
    offline : bool
        Ask no service in the network (files at URLs are still read).
    references : str
        Where reference files are taken from: a folder or URL, the lock file of an earlier run (``.json``), or ``crds``.
    report : bool
        End a run with a report and the run's record beside the products.
    cluster : str, Executor, distributed.Client or None
        Who works instead of processes of this machine: address or scheduler file of a Dask cluster, a client of one, or
        any executor. Workers of a cluster keep to their own memory limits, ``memory`` is then for those that have none.
    task_limit : float or None
        Seconds that a task may take before its worker counts as hanging.
    load : callable
        Loads what the work needs in each of its processes; a function of a module.

    Examples
    --------
    >>> Session(output_dir="results", memory="1GiB", workers=2).memory
    '1GiB'
    """

    store: str | None = None
    output_dir: str = "."
    memory: str | int | None = DEFAULT_MEMORY
    workers: int | None = None
    storage_options: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    force: bool = False
    offline: bool = False
    references: str = ""
    report: bool = True
    cluster: str | Executor | Client | None = None
    task_limit: float | None = TASK_LIMIT
    load: Callable[[], None] = field(default=load, repr=False)
    _crew: Executor | Cluster | None = field(default=None, init=False, repr=False)
    _leases: dict[str, Lease] | None = field(default=None, init=False, repr=False)
    _draft: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.task_limit is not None and not self.task_limit > 0:
            raise InputError(f"--task-limit {self.task_limit:g}: give a positive number of seconds")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers}: give at least 1")

    def runner(self, url: str) -> Runner:
        """Return a runner for work on the store at a URL."""
        memory = None if self.memory is None else parse_size(self.memory)
        workers = self.workers if self.workers is not None else (os.cpu_count() or 1)
        passing = any(u.startswith("memory://") for u in (url, self.output_dir))
        if self.cluster is not None and passing:
            raise InputError(
                "memory:// lives in one process: give the cluster's workers a store that all of them reach"
            )
        if workers > 1 and passing:
            self.progress.note("memory:// lives in one process: all work is done in it")
            workers = 1
        _compile(self.progress)
        return Runner(memory, workers, self.progress, self._workers(), self.load, self.task_limit, self.check)

    def _workers(self) -> Executor | Cluster | None:
        """Who works instead of processes of this machine; a cluster is connected once."""
        if self._crew is None and self.cluster is not None:
            if isinstance(self.cluster, Executor):
                self._crew = self.cluster
            else:
                self._crew = Cluster(
                    connect(self.cluster) if isinstance(self.cluster, str) else self.cluster, self.load
                )
                self.progress.note(f"cluster: {self._crew.describe()}")
        return self._crew

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written inside is written by one run at a time: stores that are held are given back at the end."""
        if self._leases is not None:  # inside another one
            yield
            return
        self._leases = {}
        try:
            yield
        finally:
            leases, self._leases = self._leases, None
            for lease in leases.values():
                lease.give_back()
            if isinstance(self.cluster, str) and isinstance(self._crew, Cluster):
                self._crew.close()
                self._crew = None

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Stores that are not there yet, or hold something else, are made in passing: a plan leaves nothing behind."""
        with tempfile.TemporaryDirectory(prefix="streamimg3-plan-", ignore_cleanup_errors=True) as folder:
            self._draft = f"{folder}/plan.zarr"
            try:
                yield
            finally:
                self._draft = None

    @property
    def draft(self) -> str | None:
        """Store of a plan for which there is none; None = not planning."""
        return self._draft

    def hold(self, obs: Observation) -> None:
        """Be the only run that writes to a store, until the end of :meth:`writing`.

        Raises
        ------
        StoreError
            If another run does.
        """
        if self._leases is not None and obs.url not in self._leases and not obs.url.startswith("memory://"):
            self._leases[obs.url] = Lease(obs.backend)

    def holds(self, obs: Observation) -> bool:
        """Whether this run is the one that writes to a store."""
        return obs.url in (self._leases or {})

    def check(self) -> None:
        """Raise if another run has taken over a store that this one held.

        Raises
        ------
        StoreError
            Naming it.
        """
        for lease in (self._leases or {}).values():
            lease.check()

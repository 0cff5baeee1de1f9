"""How a run is carried out, as opposed to what is computed: store, folder, memory, workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from streamimg3.engine import Runner
from streamimg3.engine.budget import parse_size
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError, TaskError
from streamimg3.pipelines import module_of

DEFAULT_MEMORY = "2GiB"


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
    load: Callable[[], None] = field(default=load, repr=False)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers}: give at least 1")

    def runner(self, url: str) -> Runner:
        """Return a runner for work on the store at a URL."""
        memory = None if self.memory is None else parse_size(self.memory)
        workers = self.workers if self.workers is not None else (os.cpu_count() or 1)
        if workers > 1 and any(u.startswith("memory://") for u in (url, self.output_dir)):
            self.progress.note("memory:// lives in one process: all work is done in it")
            workers = 1
        _compile(self.progress)
        return Runner(memory, workers, self.progress, load=self.load)

"""Time series in blocks of integrations: which tasks there are, and what belongs to each segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.engine.budget import MIB
from streamimg3.errors import InputError
from streamimg3.store import Exposure, ExposureRecord, Observation
from streamimg3.store.layout import TIMES
from streamimg3.store.seen_cube import SeenCube
from streamimg3.store.series import Series, time_series
from streamimg3.store.series_documents import SeriesExposure, SeriesReferencesDocument

BLOCK = 2**22  # pixels of a block, about
FEWEST = 16  # integrations of a block
REST = 12 * MIB  # codecs, chunks that are read in part


@dataclass(frozen=True)
class Setting:
    """A store with time series, as workers find it; ``mark`` tells runs apart.

    ``judged`` says whether the outliers that the store holds count.
    """

    obs: Observation
    mark: str
    judged: bool

    @property
    def series(self) -> tuple[Series, ...]:
        """All time series."""
        return _series(self.obs, self.mark)

    @property
    def references(self) -> SeriesReferencesDocument:
        """What reference files and headers say."""
        return _references(self.obs, self.mark)

    def seen(self, record: ExposureRecord) -> SeenCube:
        """Return a segment seen through the outliers."""
        return SeenCube(Exposure(self.obs, record), self.judged)

    def entry(self, record: ExposureRecord) -> SeriesExposure:
        """Return what applies to a segment."""
        return self.references.exposures[record.index]


@lru_cache(maxsize=4)
def _series(obs: Observation, mark: str) -> tuple[Series, ...]:
    return time_series(obs.records())


@lru_cache(maxsize=4)
def _references(obs: Observation, mark: str) -> SeriesReferencesDocument:
    return references_of(obs)


def references_of(obs: Observation) -> SeriesReferencesDocument:
    """Return what headers and reference files say.

    Raises
    ------
    InputError
        If nothing of this is known.
    """
    found = obs.document(SeriesReferencesDocument)
    if found is None or len(found.exposures) != len(obs.records()):
        raise InputError(f"{obs.url} does not say what its time series are: run tso3 on their files")
    return found


def block_length(series: Series) -> int:
    """Return the integrations of a block: whole chunks, and about four million pixels."""
    ny, nx = series.shape
    wanted = max(FEWEST, BLOCK // (ny * nx))
    return min(-(-wanted // series.depth) * series.depth, -(-series.count // series.depth) * series.depth)


def blocks(series: Series, length: int) -> list[tuple[int, int]]:
    """Return first row and the one behind the last of every block."""
    return [(first, min(first + length, series.count)) for first in range(0, series.count, length)]


def block_tasks(
    series: Sequence[Series], nbytes: tuple[int, int], planes: Sequence[str], target: str, length: int | None = None
) -> list[Task]:
    """Return a task for each block of each series.

    Parameters
    ----------
    series : sequence of Series
        All of them; a task's item is the number of one, first row and the one behind the last.
    nbytes : tuple of int
        Bytes per pixel of each integration at hand, and besides.
    planes : sequence of str
        What is read.
    target : str
        What is written, for the plan.
    length : int, optional
        Rows of a block.
    """
    tasks = []
    for number, one in enumerate(series):
        ny, nx = one.shape
        for first, last in blocks(one, length or block_length(one)):
            box = (first * ny, 0, last * ny, nx)
            each = nbytes[0] * ny * nx
            most, least = (REST + nbytes[1] + each * n for n in (last - first, min(one.depth, last - first)))
            reads = tuple((f"{one.name}/{p}", box) for p in planes)
            writes = ((f"{target}/{number}", (first, 0, last, 1)),)
            tasks.append(Task(f"s{number}i{first:08d}", most, least, reads, writes, (number, first, last)))
    return tasks


def pieces(task: Task, series: Series) -> list[tuple[int, int]]:
    """Cut the rows of a task's block so that they fit into the memory it was granted: whole chunks."""
    _, first, last = task.item if isinstance(task.item, tuple) else (0, 0, 0)
    depth = min(series.depth, last - first)
    each = (task.nbytes - task.least) / max(1, last - first - depth)
    fits = last - first if not each else int((task.limit - task.least) // each) + depth
    step = max(depth, fits // depth * depth)
    return [(at, min(at + step, last)) for at in range(first, last, step)]


def times_of(obs: Observation, series: Series) -> dict[str, NDArray[np.generic]]:
    """Return number and times of every integration of a series."""
    exposures = [Exposure(obs, r) for r in series.records]
    return {name: np.concatenate([e.column(name) for e in exposures]) for name in ("integration_number", *TIMES)}

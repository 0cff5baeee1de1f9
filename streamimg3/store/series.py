"""Time series: the segments of one exposure as one time axis, and their pixels seen through the outliers found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.store.cubes import Part
from streamimg3.store.exposure import Exposure, ExposureRecord
from streamimg3.store.layout import FLAGS, cube_chunking

_SEGMENT = re.compile(r"-seg(\d+)")
_OUTLIER = np.uint32(FLAGS["OUTLIER"] | FLAGS["DO_NOT_USE"])
_BAD = np.uint32(FLAGS["DO_NOT_USE"])


def series_name(name: str) -> str:
    """Return the name of an exposure of which a file is one segment.

    Examples
    --------
    >>> series_name("jw01366002001_04103_00001-seg002_nrca1")
    'jw01366002001_04103_00001_nrca1'
    """
    return _SEGMENT.sub("", name)


def segment_number(name: str) -> int | None:
    """Return the number of the segment in a file's name, None if it has none.

    Examples
    --------
    >>> segment_number("jw01366002001_04103_00001-seg002_nrca1")
    2
    """
    found = _SEGMENT.search(name)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Series:
    """The segments of one exposure of one detector, in order of time; rows count over all of them.

    Parameters
    ----------
    name : str
        Of the exposure.
    records : tuple of ExposureRecord
        Its segments.
    """

    name: str
    records: tuple[ExposureRecord, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(ny, nx)`` of an integration."""
        return self.records[0].shape

    @property
    def count(self) -> int:
        """Number of integrations."""
        return sum(r.integrations for r in self.records)

    @property
    def depth(self) -> int:
        """Integrations that lie in one chunk of the store: blocks are best multiples of it."""
        end = self.records[-1].first + self.records[-1].integrations
        return cube_chunking(self.shape, end)[0][0]

    def start(self, record: ExposureRecord) -> int:
        """Return the row of a segment's first integration."""
        at = [r.index for r in self.records].index(record.index)
        return sum(r.integrations for r in self.records[:at])

    def parts(self, first: int, last: int) -> tuple[Part, ...]:
        """Return what some rows are made of, in order."""
        found, start = [], 0
        for record in self.records:
            begin, end = max(first, start), min(last, start + record.integrations)
            if begin < end:
                found.append(Part(record, begin - start, end - start, begin - first))
            start += record.integrations
        return tuple(found)


def time_series(records: Sequence[ExposureRecord]) -> tuple[Series, ...]:
    """Return the time series that the cubes among some exposures make up, in the order of their first segments."""
    groups: dict[tuple[str, tuple[int, int]], list[ExposureRecord]] = {}
    for record in (r for r in records if r.integrations):
        groups.setdefault((series_name(record.name), record.shape), []).append(record)
    names = [name for name, _ in groups]
    found = []
    for (name, shape), mine in groups.items():
        mine.sort(key=lambda r: segment_number(r.name) or 0)
        title = name if names.count(name) == 1 else f"{name}_{shape[0]}x{shape[1]}"
        found.append(Series(title, tuple(mine)))
    return tuple(found)


@dataclass(frozen=True)
class SeenCube:
    """A cube seen through the outliers: what is bad in one plane is bad in all, as in the reference's ``_crfints``.

    Parameters
    ----------
    exposure : Exposure
        The cube.
    outliers : bool
        Whether the outliers that the store holds count.
    matched : bool
        Whether what is NaN in one plane is bad, and what is bad is NaN; otherwise pixels are as they came.
    """

    exposure: Exposure
    outliers: bool = True
    matched: bool = True

    def flags(self, first: int, last: int, box: Box) -> NDArray[np.uint32]:
        """Return the flags of some integrations, shape (n, rows, columns)."""
        found = np.zeros((last - first, *box.shape), np.uint32)
        if self.exposure.has("dq"):
            found |= self.exposure.read_block("dq", first, last, box).astype(np.uint32, copy=False)
        if self.outliers:
            outlier = self.exposure.read_block("outlier", first, last, box) != 0
            np.bitwise_or(found, _OUTLIER, out=found, where=outlier)
        if self.matched:
            nan = self.exposure.read_block("nan", first, last, box) != 0
            np.bitwise_or(found, _BAD, out=found, where=nan)
        return found

    def bad(self, first: int, last: int, box: Box) -> NDArray[np.bool_]:
        """Return where pixels must not be used."""
        return np.asarray((self.flags(first, last, box) & _BAD) != 0, np.bool_)

    def read(
        self, plane: str, first: int, last: int, box: Box, bad: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Return a plane of numbers, NaN where pixels are bad; ``bad`` saves finding out again where that is."""
        values = np.array(self.exposure.read_block(plane, first, last, box), np.float32)
        if self.matched:
            np.copyto(values, np.float32(np.nan), where=self.bad(first, last, box) if bad is None else bad)
        return values

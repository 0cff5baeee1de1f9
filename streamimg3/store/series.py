"""Time series: the segments of one exposure as one time axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from streamimg3.store.cubes import Part
from streamimg3.store.exposure import ExposureRecord
from streamimg3.store.layout import cube_chunking

_SEGMENT = re.compile(r"-seg(\d+)")


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

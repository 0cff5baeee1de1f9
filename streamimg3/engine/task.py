"""A unit of work as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)  # there may be tens of thousands
class Task:
    """One independent piece of a stage.

    Parameters
    ----------
    key : str
        Name, unique in its stage; receipts are filed under it.
    nbytes : int
        Most memory the work holds beyond the idle worker, in bytes.
    least : int
        The same when the work goes through its input in the thinnest bands.
    reads, writes : tuple
        What it reads and writes, as ``(name, (y0, x0, y1, x1))``; nobody else writes those boxes.
    item : int or tuple of int
        What the stage needs to find its work (an exposure, a tile position).
    libraries : int
        What the work's own libraries take in a worker, bytes; this process has loaded them already.
    limit : int
        Memory granted by the runner, between ``least`` and ``nbytes``; the work chooses its bands by it.
    """

    key: str
    nbytes: int
    least: int
    reads: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()
    writes: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()
    item: int | tuple[int, ...] = 0
    libraries: int = 0
    limit: int = 0

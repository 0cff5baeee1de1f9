"""A plan in numbers: memory, bytes and requests of each step before it runs, and seconds once this machine was timed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamimg3.engine import Task
from streamimg3.engine.budget import share
from streamimg3.session import Session
from streamimg3.speed import Speed
from streamimg3.store.layout import PLANES, VARIANCES, chunking, inner_chunk

Box = tuple[int, int, int, int]
# Planes of an exposure that a step reads, where its tasks name the exposure as a whole; others read all of them
_READS = {
    "skymatch": ("sci", "dq", "nan"),
    "outlier_detection": ("sci", "nan", "dq", "var_rnoise", "err"),
    "resample": ("sci", "nan", "dq", "outlier", *VARIANCES),
}
_ALL = ("sci", "err", "dq", *VARIANCES, "area", "nan")
_PACKED = {"f": 0.7, "u": 0.1, "i": 0.3}  # stored over unpacked bytes: noise hardly gets smaller, flags and context do
_LEAST_MEMBER = 4  # bytes per pixel of a plane in a member's file


@dataclass(frozen=True)
class Traffic:
    """Bytes of objects and how many requests they take."""

    nbytes: float = 0.0
    requests: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.nbytes + other.nbytes, self.requests + other.requests)


def summary(step: str, tasks: Sequence[Task], session: Session, speed: Speed | None = None) -> dict[str, Any]:
    """Return a plan in numbers.

    Parameters
    ----------
    step : str
        Name of the step.
    tasks : sequence of Task
        Its tasks.
    session : Session
        Memory, workers or cluster.
    speed : Speed, optional
        What this machine was timed at.

    Returns
    -------
    dict
        ``step``, ``tasks``, ``workers``; in bytes ``projected`` (driver and workers together), ``per_worker`` (what one
        task may hold), ``smallest`` (budget that works), ``bytes_read``, ``bytes_written`` (packed, about);
        ``pixels_read``, ``pixels_written``, ``requests`` (about), ``seconds`` (None = not timed).

    Raises
    ------
    BudgetError
        If the session's memory cannot hold the tasks.
    """
    granted = session.runner("").check(tasks)
    alone = share(None, 1, [replace(t, nbytes=t.least) for t in tasks])
    read = _sum(_read_traffic(step, name, box) for t in tasks for name, box in t.reads)
    written = _sum(_write_traffic(name, box) for t in tasks for name, box in t.writes)
    seconds = None if speed is None else speed.seconds(step, tasks)
    return {
        "step": step, "tasks": len(tasks), "workers": granted.workers, "projected": granted.projected,
        "per_worker": granted.each, "smallest": alone.projected,
        "pixels_read": _pixels(b for t in tasks for _, b in t.reads),
        "pixels_written": _pixels(b for t in tasks for _, b in t.writes),
        "bytes_read": round(read.nbytes), "bytes_written": round(written.nbytes),
        "requests": read.requests + written.requests + len(tasks),  # each leaves a receipt
        "seconds": None if seconds is None else round(seconds / granted.workers, 1),
    }  # fmt: skip


def _pixels(boxes: Iterable[Box]) -> int:
    return sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes)


def _sum(parts: Iterable[Traffic]) -> Traffic:
    return sum(parts, Traffic())


def _read_traffic(step: str, name: str, box: Box) -> Traffic:
    """What reading a window takes: whole chunks, and a request for each stretch of them and for each shard's table."""
    if "://" in name or name.startswith("/"):  # a file
        return Traffic(_pixels([box]) * 3.0 * _LEAST_MEMBER, 3)
    stem = name.partition("[")[0]
    plane = stem.rsplit("/", 1)[-1]
    planes = (plane,) if plane in PLANES else _READS.get(step, _ALL)
    chunk, width = _cut(stem, box)
    y0, x0, y1, x1 = (box[0] // chunk, box[1] // chunk, -(-box[2] // chunk), -(-box[3] // chunk))
    chunks = (y1 - y0) * (x1 - x0)
    stretches = 1 if x1 - x0 >= width else y1 - y0
    nbytes = sum(chunks * chunk * chunk * _packed(p) for p in planes)
    return Traffic(nbytes, len(planes) * (1 + stretches))


def _write_traffic(name: str, box: Box) -> Traffic:
    """What writing a region takes: a request for each plane of it."""
    plane = name.partition("[")[0].rsplit("/", 1)[-1]
    planes = (plane,) if plane in PLANES else _ALL
    return Traffic(sum(_pixels([box]) * _packed(p) for p in planes), len(planes))


def _packed(plane: str) -> float:
    """Stored bytes per pixel, about."""
    import numpy as np

    kind = np.dtype(PLANES[plane].dtype)
    return kind.itemsize * _PACKED[kind.kind]


def _cut(stem: str, box: Box) -> tuple[int, int]:
    """Side of the chunks of an image, and how many lie side by side."""
    shape = re.search(r"(\d+)x(\d+)", stem)
    if shape is None:  # a mosaic: tiles are read whole, or nearly
        chunk = inner_chunk(max(1, box[2] - box[0]))
        return max(chunk, 64), max(1, math.ceil((box[3] - box[1]) / max(chunk, 64)))
    ny, nx = int(shape[1]), int(shape[2])
    (chunk, _), _ = chunking((ny, nx))
    return chunk, math.ceil(nx / chunk)

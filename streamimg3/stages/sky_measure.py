"""Measure the sky of one exposure in its overlaps with others, in bounded memory (spec image3 §5.3, §5.4)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.geometry import Box
from streamimg3.kernels import scanline
from streamimg3.kernels.sky_level import Clipping, Pieces, histogram_bytes, sky_level
from streamimg3.sky.overlap import PixelPolygon
from streamimg3.store import Observation
from streamimg3.store.documents import SkyOverlap, revive
from streamimg3.store.layout import chunking

WHOLE = -1  # instead of an item: the whole exposure
_PIXEL = 28  # bytes in a band: flags, compressed and unpacked pixels, the values picked from it
F4 = NDArray[np.float32]
Band = tuple[tuple[int, int], F4]  # row and column of the first pixel, pixels


@dataclass(frozen=True)
class Region:
    """Pixels of an exposure in which the sky is measured: its overlap with an item, or (`WHOLE`) all of it."""

    item: int
    polygons: tuple[PixelPolygon, ...] = ()

    def box(self, shape: tuple[int, int]) -> Box | None:
        """Return the box that holds it in an image, None where it reaches no pixel."""
        if self.item == WHOLE:
            return Box.of_shape(shape)
        boxes = [box for polygon in self.polygons if (box := polygon.box(shape)) is not None]
        return functools.reduce(Box.union, boxes) if boxes else None

    def spans(self, shape: tuple[int, int]) -> scanline.I8:
        """Return its pixels as intervals of rows."""
        if self.item == WHOLE:
            return scanline.everywhere(shape)
        return scanline.union([scanline.inside(np.array(p.vertices), p.shift, shape) for p in self.polygons])


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of one exposure.

    Parameters
    ----------
    exposure, row : int
        Index in the store, and place in its stack.
    path : str
        The stack.
    shape : tuple of int
        Rows and columns.
    bad : int
        Flags that exclude a pixel; 0 = flags are not read.
    offset : float
        Taken off every pixel first, in the image's unit.
    regions : tuple of Region
        Where the sky is measured; each reaches a pixel.
    """

    exposure: int
    row: int
    path: str
    shape: tuple[int, int]
    bad: int
    offset: float
    regions: tuple[Region, ...]

    @property
    def boxes(self) -> list[Box]:
        """The boxes that hold the regions."""
        return [box for region in self.regions if (box := region.box(self.shape)) is not None]

    @property
    def window(self) -> Box:
        """The box that holds all regions."""
        return functools.reduce(Box.union, self.boxes)

    @classmethod
    def read(cls, obs: Observation, key: str) -> Job:
        """Return a job that was kept in the store.

        Raises
        ------
        StoreError
            If it is not there.
        """
        data = obs.backend.get(key)
        if data is None:
            raise StoreError(f"{obs.url}/{key} is missing: run the step again")
        job: Job = revive(cls, json.loads(data))
        return job

    def write(self, obs: Observation, key: str) -> None:
        """Keep the job in the store."""
        obs.backend.put(key, json.dumps(asdict(self), allow_nan=False).encode())


@dataclass(frozen=True)
class Measured:
    """Sky of an exposure in its overlap with an item (or `WHOLE`), and the number of pixels behind it."""

    exposure: int
    item: int
    value: float
    pixels: int


@dataclass(frozen=True)
class Memory:
    """Bytes for a job: with nothing kept, with the values of one region, and with all pixels of the window."""

    least: int
    values: int
    frame: int

    @classmethod
    def of(cls, job: Job, clipping: Clipping) -> Memory:
        """Return the bounds for a job."""
        window, largest = job.window, max(box.size for box in job.boxes)
        vertices = sum(len(p.vertices) for region in job.regions for p in region.polygons)
        counts = histogram_bytes(largest, clipping.binwidth) if clipping.statistic in ("mode", "midpt") else 2**21
        least = _PIXEL * _band_rows(job) * window.shape[1] + counts + 400 * job.shape[0] + 1000 * vertices + 2**20
        return cls(least, least + 4 * largest, least + 4 * largest + 4 * window.size)


def _band_rows(job: Job) -> int:
    """Rows of a band: those of a chunk of the store, so that each is unpacked once."""
    return chunking(job.shape)[0][0]


def measure(obs: Observation, job: Job, clipping: Clipping, limit: int) -> list[Measured]:
    """Return the sky of an exposure in those of its regions that have enough good pixels.

    Parameters
    ----------
    obs : Observation
        The store.
    job : Job
        The exposure and the regions.
    clipping : Clipping
        How a level is found from pixels.
    limit : int
        Bytes that may be held: they decide which pixels are kept, and which are read again for every region or, at the
        very least, for every pass. The result is the same to the last bit.
    """
    memory = Memory.of(job, clipping)
    joined = limit >= memory.values
    bands = _Bands(obs, job, limit - (memory.values if joined else memory.least))
    found = []
    for region in job.regions:
        pieces: Pieces = functools.partial(_pieces, bands, region.spans(job.shape))
        if joined:
            pieces = list(pieces()).copy
        level = sky_level(pieces, clipping)
        if level is not None:
            found.append(Measured(job.exposure, region.item, *level))
    return found


class _Bands:
    """The pixels of a job's window, NaN where they do not count, one row of chunks at a time.

    As many of them as there is ``room`` for (bytes) are kept; the others are read anew each time.
    """

    def __init__(self, obs: Observation, job: Job, room: int) -> None:
        self.obs, self.job, self.room = obs, job, room
        self.kept: list[Band] = []

    def __iter__(self) -> Iterator[Band]:
        window, rows = self.job.window, _band_rows(self.job)
        starts = range(window.y0 - window.y0 % rows, window.y1, rows)
        yield from self.kept
        for y in starts[len(self.kept) :]:
            box = Box(max(y, window.y0), window.x0, min(y + rows, window.y1), window.x1)
            band = (box.y0, box.x0), self._read(box)
            if 4 * box.size <= self.room:
                self.kept.append(band)
                self.room -= 4 * box.size
            else:
                self.room = 0  # what is kept has no gaps
            yield band

    def _read(self, box: Box) -> F4:
        job = self.job
        pixels: F4 = self.obs.window(f"{job.path}/sci", (job.row,), box).astype(np.float32, copy=False)
        if job.offset:
            pixels = pixels - np.float32(job.offset)
        if job.bad:
            flags = self.obs.window(f"{job.path}/dq", (job.row,), box).astype(np.uint32, copy=False)
            pixels[(flags & np.uint32(job.bad)) != 0] = np.nan
        return pixels


def _pieces(bands: Iterable[Band], spans: scanline.I8) -> Iterator[F4]:
    """The good pixels of a region, row by row."""
    for corner, pixels in bands:
        part = scanline.within(spans, corner[0], corner[0] + len(pixels))
        values = np.empty(scanline.count(part), np.float32)
        yield values[: scanline.gather(pixels, corner, part, values)]


def paired(items: Sequence[Sequence[int]], found: Sequence[Measured], single: bool) -> list[SkyOverlap]:
    """Return the sky of two items in their overlap, for all overlaps where both have pixels.

    Parameters
    ----------
    items : sequence of sequences of int
        The exposures of each item.
    found : sequence of Measured
        Sky of each exposure in its overlap with each item.
    single : bool
        Whether the mean over the exposures of an item is taken in single precision.
    """
    owner = {exposure: k for k, members in enumerate(items) for exposure in members}
    sides: dict[tuple[int, int], list[Measured]] = {}
    for m in found:
        sides.setdefault((owner[m.exposure], m.item), []).append(m)
    pairs = []
    for i, j in sorted((i, j) for i, j in sides if i < j and (j, i) in sides):
        (one, n_one), (other, n_other) = (
            _mean(sides[k], single) if len(items[k[0]]) > 1 else (sides[k][0].value, sides[k][0].pixels)
            for k in ((i, j), (j, i))
        )
        pairs.append(SkyOverlap((i, j), (one, other), (n_one, n_other)))
    return pairs


def _mean(parts: Sequence[Measured], single: bool) -> tuple[float, int]:
    """Mean weighted by pixels, and the number of pixels."""
    number, total = np.float32 if single else np.float64, 0.0
    for m in parts:
        total = float(number(total) + number(m.value) * number(m.pixels))
    pixels = sum(m.pixels for m in parts)
    return float(number(total) / number(pixels)), pixels

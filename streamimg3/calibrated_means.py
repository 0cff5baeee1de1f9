"""Means of backgrounds: made band by band into the store, and read from there while exposures are calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamimg3.engine import Task
from streamimg3.engine.budget import MIB, roomy_allocator
from streamimg3.errors import StoreError
from streamimg3.formats.association import Member
from streamimg3.formats.fits_file import parse_cards
from streamimg3.formats.reference_image import subarray_of
from streamimg3.formats.sources import Source, open_sources
from streamimg3.geometry import Box
from streamimg3.stages import bkg_subtract
from streamimg3.stages.bkg_subtract import Piece
from streamimg3.stages.calibrated_band import MeanBackground
from streamimg3.store import Observation
from streamimg3.store.documents import BackgroundSet, CalibrationDocument

_ROWS = 256  # of a background's mean: a task, and a shard of the store
_BAND_PIXELS = 2**19  # of all backgrounds, or integrations of one, that are averaged at a time
_REST = 6 * MIB  # headers of open files, beside what the runner allows for codecs
_FILE = 2 * MIB  # of one more file that is open
ROOM = 24 * MIB  # of freed memory that is kept while bands are worked out: one after the other asks for as much
MEAN_ROW = 12 * _ROWS  # bytes of a column of the rows of a mean that are held
LIBRARIES = 34 * MIB  # what this module imports, astropy's FITS and statistics, writing with zarr


@lru_cache(maxsize=4)
def stored_document(obs: Observation, mark: str) -> CalibrationDocument:
    """What a store's exposures are calibrated by (read once per process and run, which ``mark`` names)."""
    found = obs.document(CalibrationDocument)
    if found is None or found.digest != mark:
        raise StoreError(f"{obs.url}/documents/calibration.json is missing: run image2 again")
    return found


def mean_path(number: int) -> str:
    """Return where the mean of a set of backgrounds is kept."""
    return f"backgrounds/{number}"


def create_means(obs: Observation, document: CalibrationDocument, bunit: str | None) -> None:
    """Create the empty planes of the means."""
    if document.backgrounds:
        obs.write_group("backgrounds", {})
    for number, given in enumerate(document.backgrounds):
        obs.write_group(mean_path(number), {"members": list(given.members), "corner": list(given.corner)})
        for plane in ("sci", "err", "dq"):
            obs.create_image(f"{mean_path(number)}/{plane}", given.shape, _ROWS, bunit)


def background_tasks(document: CalibrationDocument, depths: Mapping[str, int]) -> list[Task]:
    """Return the tasks that make the means: one for each band of rows.

    Parameters
    ----------
    document : CalibrationDocument
        With the sets.
    depths : mapping of str to int
        Integrations of each background; 0 = an image.
    """
    tasks = []
    for number, given in enumerate(document.backgrounds):
        (ny, nx), count = given.shape, len(given.members)
        deepest = max(1, *(depths.get(url, 0) for url in given.members))
        row = bkg_subtract.memory(nx, count, deepest)
        rest = _REST + count * _FILE
        for y0 in range(0, ny, _ROWS):
            y1 = min(ny, y0 + _ROWS)
            box = (y0, 0, y1, nx)
            reads = tuple((url, box) for url in given.members)
            writes = tuple((f"{mean_path(number)}/{plane}", box) for plane in ("sci", "err", "dq"))
            whole = 12 * (y1 - y0) * nx
            most, least = (rest + whole + rows * row for rows in (min(y1 - y0, _thickest(nx, count, deepest)), 1))
            item = (number, y0, y1)
            tasks.append(Task(f"b{number:04d}r{y0:05d}", most, least, reads, writes, item, libraries=LIBRARIES))
    return tasks


def background_work(task: Task, *, obs: Observation, mark: str, options: dict[str, str]) -> dict[str, float]:
    """Make some rows of the mean of a set of backgrounds."""
    import time

    start = time.process_time()
    document = stored_document(obs, mark)
    number, y0, y1 = task.item if isinstance(task.item, tuple) else (task.item, 0, 0)
    given = document.backgrounds[number]
    nx = given.shape[1]
    made = {"sci": np.empty((y1 - y0, nx), np.float32), "err": np.empty((y1 - y0, nx), np.float32)}
    flags = np.empty((y1 - y0, nx), np.uint32)
    clip = bkg_subtract.Params(
        sigma=document.parameters["bkg_subtract"]["sigma"], maxiters=document.parameters["bkg_subtract"]["maxiters"]
    ).clip
    with ExitStack() as held:
        held.enter_context(roomy_allocator(ROOM))
        files = [
            held.enter_context(open_sources(Member(u, "background"), options, bare=True))[0] for u in given.members
        ]
        for b0, b1 in _thin(task, files, (y0, y1), nx):
            pieces = (_piece(f, given, b0, b1) for f in files)
            corner = given.corner[0] + b0, given.corner[1]
            mean = bkg_subtract.mean_of(pieces, corner, (b1 - b0, nx), clip)
            rows = slice(b0 - y0, b1 - y0)
            made["sci"][rows], made["err"][rows], flags[rows] = mean
    box = Box(y0, 0, y1, nx)
    for plane, values in (*made.items(), ("dq", flags)):
        obs.write(f"{mean_path(number)}/{plane}", (), box, values)
    return {"bkg_subtract": time.process_time() - start}


def _thickest(nx: int, count: int, deepest: int) -> int:
    """Return the most rows of a band: what it takes is then found anew in memory that the last one has left."""
    return max(1, _BAND_PIXELS // (nx * max(count, deepest)))


def _thin(task: Task, files: list[Source], rows: tuple[int, int], nx: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of a task so that they fit into its memory."""
    deepest = max(f.cube.count if f.cube else 1 for f in files)
    row = bkg_subtract.memory(nx, len(files), deepest)
    free = task.limit - (task.least - row)
    step = max(1, min(rows[1] - rows[0], free // row, _thickest(nx, len(files), deepest)))
    for y0 in range(*rows, step):
        yield y0, min(y0 + step, rows[1])


def _piece(file: Source, given: BackgroundSet, y0: int, y1: int) -> Piece | None:
    """Read the rows of a background that lie in rows ``y0..y1`` of the exposures."""
    where = subarray_of(parse_cards(file.primary_cards), file.shape, file.url)
    shift = given.corner[0] - where.corner[0]
    b0, b1 = max(0, y0 + shift), min(file.shape[0], y1 + shift)
    if b0 >= b1:
        return None
    corner = where.corner[0] + b0, where.corner[1]
    if file.cube is None:
        found = {p.name: p.read(b0, b1) for p in file.planes if p.name in ("sci", "err", "dq")}
    else:
        deep = (p for p in file.cube.planes if p.name in ("sci", "err", "dq"))
        found = {p.name: p.read(0, file.cube.count, b0, b1) for p in deep}
        shared = file.plane("pixeldq")
        if shared is not None:
            found["dq"] = np.broadcast_to(shared.read(b0, b1), found["sci"].shape)  # type: ignore[assignment]
    dq = found.get("dq", np.zeros(found["sci"].shape, np.uint32))
    return Piece(found["sci"], found["err"], dq, corner)  # type: ignore[arg-type]


@dataclass
class StoredMean:
    """The mean of a set of backgrounds as it is in the store, read a shard's rows at a time.

    Parameters
    ----------
    obs : Observation
        The store.
    number : int
        Of the set.
    shape : tuple of int
        Rows and columns.
    """

    obs: Observation
    number: int
    shape: tuple[int, int]
    _held: tuple[int, MeanBackground] | None = None

    def rows(self, y0: int, y1: int) -> MeanBackground:
        """Return rows ``y0..y1``."""
        first = y0 // _ROWS * _ROWS
        if y1 > first + _ROWS:
            return self._read(y0, y1)
        if self._held is None or self._held[0] != first:
            self._held = None
            self._held = first, self._read(first, min(first + _ROWS, self.shape[0]))
        sci, err, dq = self._held[1]
        here = slice(y0 - first, y1 - first)
        return MeanBackground(sci[here], err[here], dq[here])

    def _read(self, y0: int, y1: int) -> MeanBackground:
        box = Box(y0, 0, y1, self.shape[1])
        sci, err, dq = (self.obs.window(f"{mean_path(self.number)}/{plane}", (), box) for plane in ("sci", "err", "dq"))
        return MeanBackground(np.asarray(sci, np.float32), np.asarray(err, np.float32), np.asarray(dq, np.uint32))

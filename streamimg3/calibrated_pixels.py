"""The pixels of image2: count rates out of files, calibrated band by band on their way; means of backgrounds into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.calibrated_headers import flat_of, planes_after
from streamimg3.engine import Task
from streamimg3.engine.budget import MIB
from streamimg3.errors import InputError, StoreError
from streamimg3.formats.association import Member
from streamimg3.formats.cal_file import SHARED, named_cube, named_planes
from streamimg3.formats.fits_file import parse_cards
from streamimg3.formats.reference_area import Area, open_area
from streamimg3.formats.reference_flat import FlatReader, open_flat
from streamimg3.formats.reference_image import PlaneReader, subarray_of
from streamimg3.formats.sources import Source, open_sources
from streamimg3.geometry import Box
from streamimg3.pipelines import image2
from streamimg3.stages import bkg_subtract
from streamimg3.stages.bkg_subtract import Piece
from streamimg3.stages.calibrated_band import BAND, PIXEL, FlatPixels, Given, MeanBackground, Planes
from streamimg3.store import Observation
from streamimg3.store.documents import BackgroundSet, CalibratedExposure, CalibrationDocument

Pixels = NDArray[np.generic]
_FLOATS = ("sci", "err", "var_poisson", "var_rnoise", "var_flat")
_ROWS = 256  # of a background's mean: a task, and a shard of the store
_REST = 6 * MIB  # headers of open files, beside what the runner allows for codecs
_FILE = 2 * MIB  # of one more file that is open
LIBRARIES = 34 * MIB  # what this module imports, astropy's FITS and statistics, writing with zarr
WORKING = BAND * PIXEL  # bytes beside the planes that are handed out


@lru_cache(maxsize=4)
def _document(obs: Observation, mark: str) -> CalibrationDocument:
    """What a store's exposures are calibrated by (read once per process and run, which ``mark`` names)."""
    found = obs.document(CalibrationDocument)
    if found is None or found.digest != mark:
        raise StoreError(f"{obs.url}/documents/calibration.json is missing: run image2 again")
    return found


# ---------------------------------------------------------------- joint planes
@dataclass
class Bands:
    """Bands of an exposure, all planes of which are worked out together and handed out one by one.

    Parameters
    ----------
    compute : callable
        ``compute(first, last, y0, y1, planes)``: the planes of these names (None = all), by name.
    keep : bool
        Hold what was worked out until each plane has been asked for once; if not, it is worked out for each plane anew,
        which takes less memory and more time.
    """

    compute: Callable[[tuple[int, int, int, int], tuple[str, ...] | None], dict[str, Pixels]]
    keep: bool
    _held: dict[tuple[int, int, int, int], dict[str, Pixels]] = field(default_factory=dict)

    def read(self, name: str, where: tuple[int, int, int, int]) -> Pixels:
        """Return rows ``y0..y1`` of integrations ``first..last`` of a plane, ``where`` = (first, last, y0, y1)."""
        if not self.keep:
            return self.compute(where, (name,))[name]
        held = self._held.get(where)
        if held is None or name not in held:
            held = self._held[where] = self.compute(where, None)
        plane = held.pop(name)
        if not held:
            del self._held[where]
        return plane


@dataclass(frozen=True)
class Calibrated:
    """An open exposure and all that belongs to it.

    Parameters
    ----------
    raw : Source
        As it is in its file.
    entry : CalibratedExposure
        What is done to it.
    inverse : mapping of str to bool
        Whether a step is inverse.
    last : str
        Last step.
    flat, area : readers or None
        Open reference files.
    background : callable or None
        ``background(y0, y1)``.
    """

    raw: Source
    entry: CalibratedExposure
    inverse: Mapping[str, bool]
    last: str
    flat: FlatReader | None
    area: PlaneReader | None
    background: Callable[[int, int], MeanBackground] | None

    def compute(self, where: tuple[int, int, int, int], names: tuple[str, ...] | None) -> dict[str, Pixels]:
        """Work out rows of some integrations (an image: 0..1), in bands that keep the working memory small."""
        first, last, y0, y1 = where
        nx = self.raw.shape[1]
        step = max(1, BAND // (nx * (last - first)))
        made: dict[str, Pixels] = {}
        for b0 in range(y0, y1, step):
            b1 = min(y1, b0 + step)
            for name, values in self._band((first, last, b0, b1)).items():
                if names is None or name in names:
                    if name not in made:
                        made[name] = np.empty((*values.shape[:-2], y1 - y0, nx), values.dtype)
                    made[name][..., b0 - y0 : b1 - y0, :] = values
        return made

    def _band(self, where: tuple[int, int, int, int]) -> dict[str, Pixels]:
        y0, y1 = where[2:]
        planes = self._planes(where)
        given = Given(
            self.background(y0, y1) if self.background else None,
            FlatPixels(*_values(self.flat, y0, y1)) if self.flat else None,
            self.entry.photmjsr, self.entry.correction, self.entry.matched,
        )  # fmt: skip
        image2.calibrate(planes, given, self.inverse, self.last)
        found: dict[str, Pixels] = {"dq": planes.dq}
        for name in _FLOATS:
            values = getattr(planes, name)
            if values is not None:
                found[name] = values
        return found

    def _planes(self, where: tuple[int, int, int, int]) -> Planes:
        found = {name: self._raw(name, where) for name in (*_FLOATS, "dq")}
        sci, dq = found["sci"], found["dq"]
        if sci is None:
            raise InputError(f"{self.raw.url}: has no SCI; make the file again")
        flags = np.zeros(sci.shape, np.uint32) if dq is None else np.array(dq, np.uint32)
        others = {name: found[name] for name in _FLOATS[1:]}
        return Planes(sci, flags, **others)  # type: ignore[arg-type]

    def _raw(self, name: str, where: tuple[int, int, int, int]) -> Pixels | None:
        """Rows of a plane as they are in the file, to be changed; None = there is no such plane."""
        first, last, y0, y1 = where
        if self.raw.cube is None:
            image = self.raw.plane(name)
            return None if image is None else image.read(y0, y1)
        deep = next((p for p in self.raw.cube.planes if p.name == name), None)
        if deep is not None:
            return deep.read(first, last, y0, y1)
        shared = self.raw.plane("pixeldq") if name == "dq" else None
        return None if shared is None else np.repeat(shared.read(y0, y1)[None], last - first, axis=0)

    def area_rows(self, y0: int, y1: int) -> NDArray[np.float32]:
        """Return rows of the relative pixel area."""
        if self.area is not None:
            return self.area.floats(y0, y1)
        plane = self.raw.plane("area")
        if plane is None:
            raise ValueError(f"{self.raw.url}: has no AREA")
        return np.asarray(plane.read(y0, y1), np.float32)


def _values(flat: FlatReader, y0: int, y1: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]:
    band = flat.read(y0, y1)
    return band.sci, band.err, band.dq


@contextmanager
def calibrating(
    obs: Observation,
    raw: Source,
    entry: CalibratedExposure,
    document: CalibrationDocument,
    last: str,
    options: Mapping[str, str],
) -> Iterator[Calibrated]:
    """Open the reference files of an open exposure.

    Parameters
    ----------
    obs : Observation
        The store, with the means of backgrounds.
    raw : Source
        The exposure, as it is in its file.
    entry : CalibratedExposure
        What is done to it.
    document : CalibrationDocument
        All of them.
    last : str
        Last step.
    options : mapping
        Storage options of the reference files.
    """
    inverse = {step: bool(values.get("inverse")) for step, values in document.parameters.items()}
    steps = image2.STEPS[: image2.STEPS.index(last) + 1]
    with ExitStack() as held:
        flat = area = None
        if entry.flat is not None and "flat_field" in steps:
            flat = held.enter_context(open_flat(flat_of(entry.flat), options))
        if entry.area is not None and "photom" in steps:
            cut = Area(entry.area.url, Box(*entry.area.box), None, None)
            area = held.enter_context(open_area(cut, options))
        background = None if entry.background is None else partial(_stored_mean, obs, entry.background, raw.shape[1])
        yield Calibrated(raw, entry, inverse, last, flat, area, background)


def _stored_mean(obs: Observation, number: int, nx: int, y0: int, y1: int) -> MeanBackground:
    box = Box(y0, 0, y1, nx)
    sci, err, dq = (obs.window(f"{mean_path(number)}/{plane}", (), box) for plane in ("sci", "err", "dq"))
    return MeanBackground(np.asarray(sci, np.float32), np.asarray(err, np.float32), np.asarray(dq, np.uint32))


def readable(source: Source, calibrated: Calibrated, keep: bool) -> Source:
    """Return an exposure with planes that are calibrated as they are read.

    Parameters
    ----------
    source : Source
        With the names of the planes.
    calibrated : Calibrated
        The open files.
    keep : bool
        See `Bands`.
    """
    bands = Bands(calibrated.compute, keep)
    planes = tuple(
        replace(p, read=calibrated.area_rows if p.name in SHARED else partial(_image_rows, bands, p.name))
        for p in source.planes
    )
    if source.cube is None:
        return replace(source, planes=planes)
    deep = tuple(replace(p, read=partial(_cube_rows, bands, p.name)) for p in source.cube.planes)
    return replace(source, planes=planes, cube=replace(source.cube, planes=deep))


def _image_rows(bands: Bands, name: str, y0: int, y1: int) -> Any:
    return bands.read(name, (0, 1, y0, y1))


def _cube_rows(bands: Bands, name: str, first: int, last: int, y0: int, y1: int) -> Any:
    return bands.read(name, (first, last, y0, y1))


@contextmanager
def open_calibrated(
    member: Member, options: Mapping[str, str], *, obs: Observation, mark: str, keep: bool
) -> Iterator[list[Source]]:
    """Open a member of image2's as the calibrated exposure that goes into the store; its headers are those of the file.

    Parameters
    ----------
    member : Member
        A science exposure.
    options : mapping
        Storage options of the files.
    obs : Observation
        The store with the calibration document and the means of backgrounds.
    mark : str
        Digest of the document.
    keep : bool
        See `Bands`.
    """
    document = _document(obs, mark)
    entry = next(e for e in document.exposures if e.url == member.url)
    with (
        open_sources(member, options, bare=True) as (raw,),
        calibrating(obs, raw, entry, document, document.last, options) as calibrated,
    ):
        names = planes_after(raw.names, entry, document.last)
        source = replace(raw, planes=named_planes(raw, names), cube=named_cube(raw, names))
        yield [readable(source, calibrated, keep)]


# ---------------------------------------------------------------- means of backgrounds
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
        row = bkg_subtract.memory(nx, count, max(1, *(depths.get(url, 0) for url in given.members)))
        rest = _REST + count * _FILE
        for y0 in range(0, ny, _ROWS):
            y1 = min(ny, y0 + _ROWS)
            box = (y0, 0, y1, nx)
            reads = tuple((url, box) for url in given.members)
            writes = tuple((f"{mean_path(number)}/{plane}", box) for plane in ("sci", "err", "dq"))
            whole = 12 * (y1 - y0) * nx
            most, least = (rest + whole + rows * row for rows in (y1 - y0, 1))
            item = (number, y0, y1)
            tasks.append(Task(f"b{number:04d}r{y0:05d}", most, least, reads, writes, item, libraries=LIBRARIES))
    return tasks


def background_work(task: Task, *, obs: Observation, mark: str, options: dict[str, str]) -> dict[str, float]:
    """Make some rows of the mean of a set of backgrounds."""
    import time

    start = time.process_time()
    document = _document(obs, mark)
    number, y0, y1 = task.item if isinstance(task.item, tuple) else (task.item, 0, 0)
    given = document.backgrounds[number]
    nx = given.shape[1]
    made = {"sci": np.empty((y1 - y0, nx), np.float32), "err": np.empty((y1 - y0, nx), np.float32)}
    flags = np.empty((y1 - y0, nx), np.uint32)
    clip = bkg_subtract.Params(
        sigma=document.parameters["bkg_subtract"]["sigma"], maxiters=document.parameters["bkg_subtract"]["maxiters"]
    ).clip
    with ExitStack() as held:
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


def _thin(task: Task, files: list[Source], rows: tuple[int, int], nx: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of a task so that they fit into its memory."""
    deepest = max(f.cube.count if f.cube else 1 for f in files)
    row = bkg_subtract.memory(nx, len(files), deepest)
    free = task.limit - (task.least - row)
    step = max(1, min(rows[1] - rows[0], free // row))
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
